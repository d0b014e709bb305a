"""What schemathesis draws beside requests from the schema: requests that nearly fit the model that is served."""

import schemathesis
from hypothesis import strategies as st

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def nearly(right, *others):
    """Right two times out of three."""
    return st.just(right) | st.just(right) | st.one_of(ANYTHING, *others)


TENSOR = st.fixed_dictionaries(
    {
        "name": nearly("image", st.sampled_from(["activation_1", ""])),
        "datatype": nearly("FP32", st.sampled_from(["FP16", "BF16", "FP64", "INT8", "UINT64", "BOOL", "BYTES"])),
        "shape": nearly([1, 1, 28, 28], st.lists(st.integers(-2, 2**63), max_size=5)),
        "data": nearly([0.5] * 784, st.lists(st.floats(-1e9, 1e9, width=32), max_size=3)),
    },
    optional={
        "parameters": nearly({}, st.fixed_dictionaries({"binary_data_size": nearly(3136)})),
    },
)
OUTPUT = st.fixed_dictionaries(
    {"name": nearly("activation_1")},
    optional={
        "parameters": nearly(
            {}, st.fixed_dictionaries({}, optional={"classification": nearly(3), "binary_data": nearly(False)})
        )
    },
)
REQUEST = st.fixed_dictionaries(
    {"inputs": st.lists(TENSOR, min_size=1, max_size=2) | ANYTHING},
    optional={
        "id": nearly("7"),
        "outputs": st.lists(OUTPUT, max_size=2) | ANYTHING,
        "parameters": nearly({}, st.fixed_dictionaries({"binary_data_output": nearly(False)})),
    },
)


@schemathesis.hook
def before_generate_body(context, strategy):
    return st.integers(0, 3).flatmap(lambda k: REQUEST if k else strategy)


@schemathesis.hook
def before_generate_path_parameters(context, strategy):
    if "{MODEL_NAME}" not in context.operation.path:
        return strategy
    right = st.just({"MODEL_NAME": "digits", "MODEL_VERSION": "1"})
    near = st.fixed_dictionaries(
        {"MODEL_NAME": st.just("digits"), "MODEL_VERSION": st.sampled_from(["0", "2", "01", "-1", "x", "9" * 30])}
    )
    return st.integers(0, 7).flatmap(lambda k: right if k > 1 else near if k else strategy)
