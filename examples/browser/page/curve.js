/** A curve of losses, step by step, that draws itself in the colours of the page. */

const SMOOTH = 0.1; // what a step counts for in the running mean
const HIGHEST = 6; // larger losses stand at the upper edge
const LEFT = 34; // space for the numbers
const BOTTOM = 20;

/** @param {HTMLCanvasElement} canvas which may change its size. */
export function curve(canvas) {
  const context = canvas.getContext("2d");
  const losses = [];
  const means = [];
  let pending = false;

  function draw() {
    const { width, height } = canvas.getBoundingClientRect();
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas);
    const color = (name) => style.getPropertyValue(name);
    const top = Math.min(HIGHEST, Math.max(0.5, ...columns(losses, 200).map(([, , high]) => high)) * 1.05);
    const count = Math.max(losses.length, 100);
    const x = (step) => LEFT + (step / (count - 1)) * (width - LEFT - 6);
    const y = (loss) => height - BOTTOM - (Math.min(loss, top) / top) * (height - BOTTOM - 8);

    context.font = "12px system-ui, sans-serif";
    context.lineWidth = 1;
    context.textBaseline = "middle";
    for (const value of ticks(top, 4)) {
      context.strokeStyle = color("--line");
      context.beginPath();
      context.moveTo(LEFT, y(value));
      context.lineTo(width, y(value));
      context.stroke();
      context.fillStyle = color("--soft");
      context.textAlign = "right";
      context.fillText(String(value), LEFT - 6, y(value));
    }
    for (const value of ticks(count, width < 400 ? 3 : 6)) {
      const edge = x(value) > width - 20;
      context.textAlign = edge ? "right" : value ? "center" : "left";
      context.fillText(value ? `${value}` : "0 steps", edge ? width : x(value), height - 7);
    }

    const across = Math.max(1, Math.round(width - LEFT));
    context.strokeStyle = color("--faint");
    context.beginPath();
    for (const [step, low, high] of columns(losses, across)) {
      context.moveTo(x(step), y(low) + 0.5);
      context.lineTo(x(step), y(high) - 0.5);
    }
    context.stroke();
    context.strokeStyle = color("--accent");
    context.lineWidth = 2.5;
    context.lineJoin = "round";
    context.beginPath();
    for (const [step, low, high] of columns(means, across)) context.lineTo(x(step), y((low + high) / 2));
    context.stroke();

    const told = losses.length
      ? `${losses.length} steps, from ${losses[0].toFixed(2)} to a mean of ${mean().toFixed(2)}`
      : "no steps yet";
    canvas.setAttribute("aria-label", `Loss of each step: ${told}`);
  }

  const mean = () => means.at(-1) ?? NaN;

  function later() {
    if (pending) return;
    pending = true;
    requestAnimationFrame(() => {
      pending = false;
      draw();
    });
  }

  new ResizeObserver(later).observe(canvas);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
  return {
    add(loss) {
      losses.push(loss);
      const share = Math.max(SMOOTH, 1 / losses.length); // a plain mean of the first ones
      means.push(means.length ? mean() + share * (loss - mean()) : loss);
      later();
    },
    clear() {
      losses.length = means.length = 0;
      later();
    },
    mean,
  };
}

/** [step, lowest, highest] of values side by side, in as many columns at most. */
function columns(values, most) {
  const size = Math.max(1, Math.ceil(values.length / most));
  const found = [];
  for (let start = 0; start < values.length; start += size) {
    const part = values.slice(start, start + size);
    found.push([start + (part.length - 1) / 2, Math.min(...part), Math.max(...part)]);
  }
  return found;
}

/** Round numbers from 0 up to the largest that is not above `top`, about `count` of them. */
function ticks(top, count) {
  const power = 10 ** Math.floor(Math.log10(top / count));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => top / one <= count);
  const found = [];
  for (let k = 0; k * step <= top; k++) found.push(Number((k * step).toPrecision(3)));
  return found;
}
