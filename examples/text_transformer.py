"""Learn to write like Python's own manual, letter by letter, with a small transformer.

python examples/text_transformer.py          about five minutes on two cores; needs matplotlib
python examples/text_transformer.py --quick  in seconds: to see that it works

The text is that of Python's help(), 370 000 letters, paragraphs that stand there twice taken once. Its first tenth is
the test. Prints how many bits a letter of the test costs by the transformer's probabilities, by counts of letters after
1 and 4 others, and in files of bz2 and lzma; how far onnxruntime is from the engine; and what the model writes,
by onnxruntime. Leaves the model for onnxruntime, its text and a picture in runs/text_transformer.
"""

import bz2
import lzma
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from manual import bits_by_counts, bits_by_file, load
from pictures import draw_bits

import lamella as lm
import lamella_onnx
from lamella_layers import Add, Dense, Dropout, Embedding, LayerNormalization, MultiHeadAttention, PositionEmbedding

PAST = 128  # letters that the model sees at most


def network(letters, width, blocks, seed=0):
    def block(x):
        seen = MultiHeadAttention(4, width // 4, causal=True)(LayerNormalization()(x))
        x = Add()(x, Dropout(0.1)(seen))
        found = Dense(width)(Dense(4 * width, activation="gelu")(LayerNormalization()(x)))
        return Add()(x, Dropout(0.1)(found))

    text = lm.Input(("T",), "int64", low=0, high=letters, name="text")
    x = Embedding(letters, width, embeddings_initializer="glorot_uniform")(text)
    x = Add()(x, PositionEmbedding(PAST)(x))
    for _ in range(blocks):
        x = block(x)
    return lm.Model(text, Dense(letters)(LayerNormalization()(x)), seed=seed)


def bits_by_model(model, codes, past):
    """Return -log2 p(letter) of all letters but the first, each seen after PAST / 2 letters or more: in windows that
    overlap by half."""
    half = PAST // 2
    windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([past[-half:], codes]), PAST + 1)[::half]
    logits = model.predict(windows[:, :-1], batch_size=16)[:, half:].astype("float64")
    costs = np.log(np.exp(logits).sum(axis=2)) - np.take_along_axis(logits, windows[:, half + 1 :, None], 2)[:, :, 0]
    return costs.ravel() / np.log(2)


def write(file, alphabet, start, length, seed=0):
    """Return letters drawn one after the other by the probabilities of the exported model."""
    session, draw = onnxruntime.InferenceSession(file), np.random.default_rng(seed)
    text = [alphabet.index(letter) for letter in start]
    for _ in range(length):
        (logits,) = session.run(None, {"text": np.array([text[-PAST:]])})
        odds = np.exp(logits[0, -1].astype("float64") / 0.7)  # the smaller the number, the more it keeps to the likely
        text.append(int(draw.choice(len(alphabet), p=odds / odds.sum())))
    return "".join(alphabet[code] for code in text)


def main(quick=False, seed=0, folder=Path("runs/text_transformer")):
    folder.mkdir(parents=True, exist_ok=True)
    learn, test = load()
    test = test[:2048] if quick else test
    alphabet = sorted(set(learn + test))
    learn_codes, test_codes = (np.array([alphabet.index(letter) for letter in text]) for text in (learn, test))
    model = network(len(alphabet), *((32, 1) if quick else (128, 3)), seed=seed)
    model.summary()
    epochs, steps, batch_size = (3, 10, 8) if quick else (20, 100, 16)
    draw = np.random.default_rng(seed)

    def batches():
        for _ in range(steps):
            starts = draw.integers(0, len(learn_codes) - PAST, size=batch_size)
            rows = learn_codes[starts[:, None] + np.arange(PAST + 1)]
            yield rows[:, :-1], rows[:, 1:]

    rate = lm.schedules.Cosine(4e-3, steps=epochs * steps, warm_up=epochs * steps // 20)
    optimizer = lm.optimizers.AdamW(rate, weight_decay=0.1)
    history = model.fit(batches, loss="softmax_cross_entropy", optimizer=optimizer, epochs=epochs, clip_norm=1.0)

    file = folder / "text_transformer.onnx"
    print(lamella_onnx.export(model, file, samples=test_codes[: 4 * PAST].reshape(4, PAST)))
    print(lamella_onnx.verify(file))
    costs = bits_by_model(model, test_codes, learn_codes)
    bits = {
        "counts, after 1 letter": bits_by_counts(learn, test, 1),
        "counts, after 4 letters": bits_by_counts(learn, test, 4),
        "lzma": bits_by_file(lzma.compress, learn, test),
        "bz2": bits_by_file(bz2.compress, learn, test),
        "transformer": costs.mean(),
    }
    print(f"\nbits for each of {len(test)} letters of the test; all have read the rest:")
    for name, cost in bits.items():
        print(f"  {name:24} {cost:.3f}")
    written = write(file, alphabet, "The ", 40 if quick else 1500, seed)
    print(f"\nwhat it writes:\n\n{written}")
    (folder / "text.txt").write_text(written, encoding="utf-8")
    title = f"A transformer reads Python's manual: {bits['transformer']:.2f} bits a letter"
    draw_bits(folder / "text_transformer.png", title, bits, test[1 : len(costs) + 1], costs, written)
    print(f"\nin {folder}: text_transformer.onnx, text_transformer.png, text.txt")
    return history


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
