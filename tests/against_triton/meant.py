"""Where `lamella serve` answers otherwise than Triton 2.51, on purpose. The judge fails where one of these is gone."""

from agreement import Meant

MISTAKE = ("400", "INVALID_ARGUMENT")
UNKNOWN = ("404", "NOT_FOUND")
ANSWER = (None,)  # no error

MEANT = [
    Meant(
        "each server tells its own name, version and extensions; lamella has no shared memory, sequences, trace or log",
        ("server metadata", "GET server metadata"),
        "*",
    ),
    Meant(
        "a mistake of the client is a 400, where Triton's parser and its backends say 500",
        (
            *("strings that are no UTF 8", "shape that onnxruntime refuses"),
            *("no JSON", "JSON and more", "no object", "no inputs", "inputs that are no list"),
            *("an id that is no string", "no name", "no datatype", "no shape"),
            *("a size below 0", "a size that is no whole number"),
            *("data that are no list", "one value too few", "one value too many"),
            *("strings for numbers", "null for a number", "true for a float", "numbers for strings"),
            *("0.5 for INT32", "-1 for UINT8", "2**64 for UINT64"),
            *("a size of binary data that is a string", "a size of binary data below 0", "a length of JSON within it"),
            *("classes below 0", "classes as a string", "an output without a name", "parameters that are no object"),
        ),
        "error",
        MISTAKE,
    ),
    Meant(
        "what is not there is a 404, where Triton has 400 for readiness and statistics, and 500 for load",
        ("statistics of an unknown model", "GET ready of an unknown model", "load an unknown model"),
        "error",
        UNKNOWN,
    ),
    Meant("unloading what was never there is a 404, where Triton says nothing", ("unload an unknown model",), ""),
    Meant(
        "a scalar has the shape [], where Triton's configuration has scalars as rows of one; both are taken",
        ("metadata of scalars",),
        "*/shape",
    ),
    Meant("a scalar is taken as one too", ("scalar without an axis",), "error", ANSWER),
    Meant(
        "an output [N] stays as it is, where Triton wants a second axis: [N, 1]",
        ("one number a row", "metadata of one number a row"),
        "outputs/0/shape",
    ),
    Meant(
        "floats of 16 bits travel as JSON too, where Triton wants bytes",
        ("float16 as JSON", "16-bit floats for JSON output"),
        "error",
        ANSWER,
    ),
    Meant(
        "classification takes truth values and float16 too",
        ("classes of truth values", "classes of float16"),
        "error",
        ANSWER,
    ),
    Meant("128 does not become -128", ("128 for INT8",), "error", MISTAKE),
    Meant("1 and 0 are taken for true and false", ("1 for BOOL",), "error", ANSWER),
    Meant("there is no shared memory: a mistake of the client", ("shared memory that nobody has",), "error", MISTAKE),
    Meant(
        "a server stays ready when a file that it is asked to load is broken",
        ("server is ready without a broken file",),
        "",
        (True,),
    ),
    Meant("an answer that one packet carries is not compressed", ("gzip out for a short answer",), "encoding"),
    Meant(
        "of the encodings that a client takes, it is gzip before deflate",
        ("gzip or deflate out, by preference",),
        "encoding",
    ),
    Meant(
        "an encoding that is not known is a mistake of the client",
        ("an encoding in that is unknown",),
        "error",
        MISTAKE,
    ),
]
