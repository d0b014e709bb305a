/** Elements of the page: those that index.html names, and new ones. Texts go in as text, never as HTML. */

export const at = (id) => document.getElementById(id);

/**
 * A new element.
 *
 * @param {string} tag its name, with classes after dots: "span.soft".
 * @param {object} properties such as {id, type, textContent}; those with a dash are attributes, such as "aria-label".
 * @param children elements and texts.
 */
export function make(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const made = document.createElement(name);
  made.className = classes.join(" ");
  for (const [key, value] of Object.entries(properties)) {
    if (key.includes("-")) made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children);
  return made;
}
