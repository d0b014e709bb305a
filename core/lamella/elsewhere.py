"""What people type who know Keras, PyTorch or scikit-learn, and what stands for it here.

A table for each place where they type it. Whoever does not know a name looks it up there, and ends the error with what
it finds; ``"*"`` stands for too many arguments by position. docs/coming-from.md has the whole picture.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from opcode import opname
from types import FrameType

__all__ = [
    "CALL",
    "CALLBACK",
    "CALLBACKS",
    "DTYPES",
    "EVALUATE",
    "FIT",
    "HISTORY",
    "LAYER",
    "LAYERS",
    "LOSS",
    "LOSSES",
    "METRIC",
    "METRICS",
    "MISSING",
    "MODEL",
    "NAMES",
    "OPTIMIZER",
    "OPTIMIZERS",
    "PACKAGE",
    "SEQUENTIAL",
    "SET",
    "hint",
    "instead",
    "instruction_of",
    "missing",
]

# Words in place of ours, where they are too different to be taken for typing errors: arguments and registered names

NAMES = {
    "adaptive_avg_pool2d": "global_average_pooling2d",
    "alpha": "rho",
    "average_precision": "auc",
    "cross_entropy": "softmax_cross_entropy",
    "dilation": "dilation_rate",
    "double": "float64",
    "f1_score": "f1",
    "filename": "path",
    "filepath": "path",
    "float": "float32",
    "he": "he_normal",
    "int": "int64",
    "kaiming": "he_normal",
    "linear": "dense",
    "log_dir": "folder",
    "long": "int64",
    "lr": "learning_rate",
    "min_lr": "min_learning_rate",
    "out_features": "units",
    "out_channels": "filters",
    "r2_score": "r2",
    "restore_best_weights": "restore_best",
    "roc_auc": "auc",
    "simple_rnn": "rnn",
    "sparse_categorical_crossentropy": "softmax_cross_entropy",
    "xavier": "glorot_uniform",
}

# Classes, and what to write for them

_OF_SCIKIT_LEARN = "of scikit-learn in a pipeline, which lamella_sklearn.to_onnx writes whole, text included"
_AUGMENTED = "a generator function that changes images: fit takes batches (x, y) of it"

_OWN = "a class of your own that extends lm.Layer, since no layer here does that"

LAYERS = {
    "AdaptiveAvgPool2d": "GlobalAveragePooling2D()",
    "AlphaDropout": _OWN,
    "Attention": "ScaledDotProductAttention()",
    "AveragePooling3D": _OWN,
    "AvgPool1D": "AveragePooling1D()",
    "AvgPool1d": "AveragePooling1D()",
    "AvgPool2D": "AveragePooling2D()",
    "AvgPool2d": "AveragePooling2D()",
    "BatchNorm1d": "BatchNormalization()",
    "BatchNorm2d": "BatchNormalization()",
    "CategoryEncoding": f"OneHotEncoder {_OF_SCIKIT_LEARN}",
    "CenterCrop": "Cropping2D(cropping)",
    "Conv1DTranspose": _OWN,
    "Conv3D": _OWN,
    "Conv3DTranspose": _OWN,
    "Conv3d": _OWN,
    "ConvLSTM2D": _OWN,
    "ConvTranspose2d": "Conv2DTranspose(filters, kernel_size)",
    "Cropping1D": _OWN,
    "Discretization": f"KBinsDiscretizer {_OF_SCIKIT_LEARN}",
    "Dropout2d": "SpatialDropout2D(rate)",
    "ELU": "Activation('elu')",
    "GELU": "Activation('gelu')",
    "GlobalAvgPool1D": "GlobalAveragePooling1D()",
    "GlobalAvgPool2D": "GlobalAveragePooling2D()",
    "GlobalMaxPool1D": "GlobalMaxPooling1D()",
    "GlobalMaxPool2D": "GlobalMaxPooling2D()",
    "GroupNorm": "GroupNormalization(groups)",
    "Hashing": f"OrdinalEncoder {_OF_SCIKIT_LEARN}",
    "Input": "lm.Input(shape)",
    "InputLayer": "input_shape= of lm.Sequential, or lm.Input",
    "IntegerLookup": f"OrdinalEncoder, or OneHotEncoder, {_OF_SCIKIT_LEARN}",
    "Lambda": "a class of your own that extends lm.Layer, with forward_pass and backward_pass, or expand",
    "LayerNorm": "LayerNormalization()",
    "LeakyReLU": "Activation('leaky_relu')",
    "Linear": "Dense(units)",
    "Masking": "an input more: masks and lengths are inputs like others, as in LSTM(8)(x, lengths)",
    "MaxPool1D": "MaxPooling1D()",
    "MaxPool1d": "MaxPooling1D()",
    "MaxPool2D": "MaxPooling2D()",
    "MaxPool2d": "MaxPooling2D()",
    "MaxPooling3D": _OWN,
    "RMSNorm": "RMSNormalization()",
    "RandomBrightness": _AUGMENTED,
    "RandomContrast": _AUGMENTED,
    "RandomCrop": _AUGMENTED,
    "RandomFlip": _AUGMENTED,
    "RandomRotation": _AUGMENTED,
    "RandomTranslation": _AUGMENTED,
    "RandomZoom": _AUGMENTED,
    "ReLU": "Activation('relu')",
    "RepeatVector": "Concatenate(axis=1), called with n times Reshape((1, features))(x)",
    "SiLU": "Activation('silu')",
    "Sigmoid": "Activation('sigmoid')",
    "SimpleRNN": "RNN(units)",
    "Softmax": "Activation('softmax')",
    "SpatialDropout1D": _OWN,
    "StringLookup": f"OrdinalEncoder, or OneHotEncoder, {_OF_SCIKIT_LEARN}",
    "Tanh": "Activation('tanh')",
    "TextVectorization": "integers made of words before they come to the model, and Embedding(input_dim, output_dim)",
    "TimeDistributed": "Dense(units), which works on every step as it is",
    "UpSampling1D": _OWN,
    "ZeroPad2d": "ZeroPadding2D(padding)",
    "ZeroPadding1D": _OWN,
}

LOSSES = {
    "BCELoss": "BinaryCrossEntropy(from_logits=False)",
    "BCEWithLogitsLoss": "BinaryCrossEntropy()",
    "BinaryCrossentropy": "BinaryCrossEntropy(), and with from_logits=False on probabilities",
    "BinaryFocalCrossentropy": "BinaryFocalCrossEntropy()",
    "CategoricalCrossentropy": "SoftmaxCrossEntropy() on logits, and CategoricalCrossEntropy() on probabilities",
    "CategoricalFocalCrossentropy": "SoftmaxFocalCrossEntropy(), on logits",
    "CrossEntropyLoss": "SoftmaxCrossEntropy()",
    "HuberLoss": "Huber()",
    "KLDivLoss": "KLDivergence(), of probabilities and not of their logarithms",
    "L1Loss": "MeanAbsoluteError()",
    "MSELoss": "MeanSquaredError()",
    "NLLLoss": "SoftmaxCrossEntropy(), on logits",
    "PoissonNLLLoss": "Poisson(log_input=True)",
    "SmoothL1Loss": "Huber()",
    "SparseCategoricalCrossentropy": "SoftmaxCrossEntropy() on logits, and CategoricalCrossEntropy() on probabilities; "
    "both take integer labels",
}

METRICS = {
    "AUROC": "AUC()",
    "AveragePrecision": "AUC('pr')",
    "CategoricalAccuracy": "Accuracy()",
    "F1Score": "F1()",
    "R2Score": "R2()",
    "SparseCategoricalAccuracy": "Accuracy()",
    "SparseTopKCategoricalAccuracy": "TopKAccuracy()",
    "TopKCategoricalAccuracy": "TopKAccuracy()",
}

OPTIMIZERS = {
    "AveragedModel": "ExponentialMovingAverage('adam'), and model.averaged()",
    "NAdam": "Nadam()",
    "lr_scheduler": "lm.schedules",
    "schedules": "lm.schedules",
}

SCHEDULES = {
    "CosineAnnealingLR": "Cosine(learning_rate, steps)",
    "CosineAnnealingWarmRestarts": "CosineRestarts(learning_rate, steps)",
    "CosineDecay": "Cosine(learning_rate, steps)",
    "CosineDecayRestarts": "CosineRestarts(learning_rate, steps)",
    "ExponentialDecay": "Exponential(learning_rate, every, factor)",
    "ExponentialLR": "Exponential(learning_rate, 1, factor)",
    "InverseTimeDecay": "InverseTime(learning_rate, every)",
    "LambdaLR": "a class of your own that extends Schedule",
    "LearningRateSchedule": "Schedule",
    "MultiStepLR": "PiecewiseConstant(boundaries, values)",
    "OneCycleLR": "OneCycle(learning_rate, steps)",
    "PiecewiseConstantDecay": "PiecewiseConstant(boundaries, values), where steps count from 1",
    "PolynomialDecay": "Polynomial(learning_rate, steps)",
    "PolynomialLR": "Polynomial(learning_rate, steps)",
    "ReduceLROnPlateau": "lm.callbacks.ReduceOnPlateau()",
    "StepLR": "StepDecay(learning_rate, every, factor)",
}

INITIALIZERS = {
    "GlorotNormal": "the name 'glorot_normal'",
    "GlorotUniform": "the name 'glorot_uniform'",
    "HeNormal": "the name 'he_normal'",
    "HeUniform": "the name 'he_uniform'",
    "LecunNormal": "the name 'lecun_normal'",
    "LecunUniform": "the name 'lecun_uniform'",
    "Ones": "the name 'ones'",
    "Orthogonal": "the name 'orthogonal'",
    "RandomNormal": "TruncatedNormal(), or a function (rng, shape, fan_in, fan_out) -> array",
    "RandomUniform": "the name 'uniform', or a function (rng, shape, fan_in, fan_out) -> array",
    "Zeros": "the name 'zeros'",
}

CALLBACKS = {
    "BackupAndRestore": "fit(..., checkpoint=path, resume=True)",
    "EarlyStoppingCallback": "EarlyStopping()",
    "History": "what fit returns",
    "LambdaCallback": "Lambda(on_epoch_end=...)",
    "LearningRateScheduler": "a schedule in place of the learning rate: lm.optimizers.Adam(lm.schedules.Cosine(...))",
    "ModelCheckpoint": "Checkpoint(path)",
    "ReduceLROnPlateau": "ReduceOnPlateau()",
    "SwapEMAWeights": "model.averaged(), a model with the averages",
    "TensorBoard": "TensorBoardLogger(folder)",
    "TerminateOnNaN": "nothing: fit ends with an error when the loss is no longer finite",
}

# Names of the package

_LAYERS_ARE = "Layers are in lamella_layers: from lamella_layers import Dense"
_SEED = "Seeds are an argument: lm.Sequential([...], seed=1), 0 by default; np.random.seed and others change nothing"
_SAVED = "lm.load(path) gives a saved model"
_OWN_LAYER = "A layer of your own extends lm.Layer; a model is lm.Sequential([...]) or lm.Model(inputs, outputs)"

PACKAGE = {
    "DataLoader": "fit takes arrays, or an iterable of batches (x, y)",
    "Module": _OWN_LAYER,
    "Tensor": "Arrays are those of NumPy",
    "backend": "There is no session to clear, and backends are in lm.backends",
    "constraints": "They are in lm.regularization, and go to fit(..., constraints={'*.kernel': ...})",
    "export": "lamella_onnx.export(model, path) writes ONNX",
    "functional": _LAYERS_ARE,
    "keras": _LAYERS_ARE,
    "load_model": "It is called lm.load",
    "manual_seed": _SEED,
    "models": f"{_SAVED}; a new one is lm.Sequential([...]) or lm.Model(inputs, outputs)",
    "nn": f"{_LAYERS_ARE}. {_OWN_LAYER}",
    "no_grad": "model.predict keeps nothing for gradients",
    "ops": "Layers compute with ctx.xp, NumPy's names on every backend, and with lm.primitives",
    "optim": "It is called lm.optimizers",
    "random": _SEED,
    "regularizers": "They are in lm.regularization, and go to fit(..., penalties={'*.kernel': ...})",
    "saving": _SAVED,
    "set_random_seed": _SEED,
    "tensor": "Arrays are those of NumPy",
    "utils": f"{_SEED}. One-hot rows are np.eye(classes)[labels]; batches of your own are an iterable of (x, y)",
}

# Attributes of a model, and its arguments

_ARRAYS = (
    "Arrays go by their names: model.parameters['dense_1.kernel'] = array, and several by model.assign({name: array})"
)
_STATE = "model.state has the arrays that are no parameters, by their names; model.freeze keeps parameters as they are"
_STOP = "A callback ends training with: raise lm.StopTraining('why')"
_IN_FIT = "It is an argument of fit"
_NO_MODES = "There are no modes: fit trains and predict infers"
_PROBABILITIES = "model.predict(x, append=Activation('softmax')) gives probabilities of logits"
_FILES = "model.save(path) writes the model and its arrays, and model.load_weights(path) takes the arrays of a file"
_GRADIENTS = "model.train_on_batch takes a step, model.gradients(x, y, loss=...) returns gradients; nothing is kept"
_RATE = (
    "It stands in the optimizer: fit(..., optimizer=lm.optimizers.Adam(0.001)); while training, callbacks change "
    "model.optimizer_state.scale"
)

MODEL = {
    "add": "All layers come at once: lm.Sequential([layer, layer], input_shape=...)",
    "backward": _GRADIENTS,
    "built": "A model is built when it is made",
    "build": "A model is built when it is made: lm.Sequential([...], input_shape=...)",
    "compile": "What it takes elsewhere stands in fit: fit(x, y, loss=..., optimizer=..., metrics=...)",
    "count_params": "model.summary() tells it; sum(one.size for one in model.parameters.values()) counts them",
    "cuda": "model.to('cupy') moves a model",
    "eval": _NO_MODES,
    "export": "lamella_onnx.export(model, path) writes ONNX, once onnxruntime has agreed with the model",
    "fit_generator": "fit takes an iterable of batches, or a generator function",
    "forward": "model.predict(x) gives the outputs",
    "get_config": "It is called config",
    "get_layer": "Layers go by name: model.layers[name]",
    "get_weights": _ARRAYS,
    "input": "The nodes are model.input_nodes",
    "input_shape": "model.input_specs has shape and dtype of each input: model.input_specs[0].shape",
    "inputs": "The nodes are model.input_nodes",
    "load_state_dict": _FILES,
    "loss": _IN_FIT,
    "metrics": _IN_FIT,
    "metrics_names": "evaluate, and the history that fit returns, are dicts by name",
    "name": "Names belong to layers, nodes and inputs: model(x, name='encoder')",
    "named_parameters": _ARRAYS,
    "non_trainable_variables": _STATE,
    "non_trainable_weights": _STATE,
    "optimizer": f"{_IN_FIT}, and what it remembers is model.optimizer_state",
    "output": "The nodes are model.output_nodes",
    "output_shape": "model.output_specs has shape and dtype of each output: model.output_specs[0].shape",
    "outputs": "The nodes are model.output_nodes",
    "pop": "Make a model of fewer layers, and take values over by copy_values",
    "predict_classes": "model.predict(x).argmax(axis=1) gives classes",
    "predict_generator": "model.predict takes arrays; numpy.concatenate joins those of batches",
    "predict_log_proba": _PROBABILITIES,
    "predict_on_batch": "model.predict(x) gives the outputs",
    "predict_proba": _PROBABILITIES,
    "reset_states": "Layers keep no state between batches: states are inputs and outputs, LSTM(8, return_state=True)",
    "save_weights": _FILES,
    "score": "model.evaluate(x, y, loss=..., metrics='accuracy') measures",
    "set_weights": _ARRAYS,
    "state_dict": _ARRAYS,
    "stop_training": _STOP,
    "test_on_batch": "model.evaluate(x, y, loss=...) measures",
    "to_json": "model.config() is the structure as plain data, and lm.from_config(config) makes a model of it",
    "train": _NO_MODES,
    "trainable_variables": _ARRAYS,
    "trainable_weights": _ARRAYS,
    "variables": _ARRAYS,
    "weights": _ARRAYS,
    "zero_grad": _GRADIENTS,
}

SEQUENTIAL = {**MODEL, "*": "All layers stand in one list: lm.Sequential([layer, layer], input_shape=...)"}

SET = {  # of which nothing would come
    "backend": "model.to('onednn') moves a model",
    "callbacks": _IN_FIT,
    "dtype": "model.copy(dtype='float64') is a model in another dtype",
    "epochs": _IN_FIT,
    "frozen_layers": "model.freeze('conv2d_*') and model.unfreeze(...) change it",
    "layers": "Make a model of other layers, and take values over by copy_values",
    "learning_rate": _RATE,
    "lr": _RATE,
    "name": MODEL["name"],
    "parameters": _ARRAYS,
    "state": "Arrays are assigned one by one: model.state['batch_normalization_1.mean'] = array",
    "stop_training": _STOP,
    "trainable": "model.freeze() keeps all parameters from training, model.freeze('conv2d_*') some, and "
    "model.unfreeze() lets them learn again",
    "training": _NO_MODES,
    "weights": _ARRAYS,
}

# Arguments of methods of a model

_LABEL_SMOOTHING = "The loss has it: lm.losses.SoftmaxCrossEntropy(label_smoothing=0.1)"

FIT = {
    "class_weights": "It is called class_weight",
    "clipnorm": "clip_norm scales all gradients together, as global_clipnorm does",
    "clipvalue": "It is called clip_value",
    "from_logits": "The loss says what it takes: softmax_cross_entropy and binary_cross_entropy logits, "
    "categorical_cross_entropy and lm.losses.BinaryCrossEntropy(from_logits=False) probabilities",
    "global_clipnorm": "It is called clip_norm",
    "label_smoothing": _LABEL_SMOOTHING,
    "learning_rate": "It stands in the optimizer: optimizer=lm.optimizers.Adam(0.001)",
    "loss_weights": "A loss brings its own: lm.losses.Weighted('huber', 0.1)",
    "lr": "It stands in the optimizer: optimizer=lm.optimizers.Adam(0.001)",
    "max_grad_norm": "It is called clip_norm",
    "return_dict": "evaluate always returns a dict by name",
    "sample_weights": "It is called sample_weight",
    "use_multiprocessing": "An iterable of batches makes them as it likes",
    "validation_batch_size": "Validation takes batches of its own size",
    "validation_freq": "Validation follows every epoch",
    "verbose": "Say progress=True or progress=False to fit; the others print nothing",
    "workers": "An iterable of batches makes them as it likes",
}

MISSING = {
    "loss": "Nothing is compiled into a model: loss='...' stands in every call, and in fit and evaluate metrics=[...]",
    "optimizer": "Likely fix: optimizer='adam', or lm.optimizers.Adam(0.001)",
}
"""What is to be said where an argument is missing."""

EVALUATE = {  # and predict
    **FIT,
    "callbacks": _IN_FIT,
    "epochs": _IN_FIT,
    "progress": "fit alone prints, and takes it",
    "steps": "An iterable of batches ends where it likes",
}

# Arguments of calls on nodes

CALL = {
    "initial_state": "States are inputs like others, one node each: layer(x, state)",
    "mask": "Masks and lengths are inputs like others: layer(x, mask)",
    "training": "fit trains and predict infers; a layer is called for both",
}

# Arguments of constructors, and attributes

_PENALTIES = "fit takes penalties by names of parameters: penalties={'*.kernel': lm.regularization.L2(1e-4)}"
_CONSTRAINTS = "fit takes constraints by names of parameters: constraints={'*.kernel': lm.regularization.MaxNorm(3)}"
_INPUT = "The model takes it: lm.Sequential([...], input_shape=...), or lm.Input(shape)"
_OF_MODEL = "A layer is configuration, and its arrays are the model's: model.parameters['dense_1.kernel']"
_CHANNELS_FIRST = "Images are channels first, (N, channels, height, width), and x.transpose(0, 3, 1, 2) makes them so"

DTYPES = dict.fromkeys(
    ("object", "str", "string"),
    f"Text becomes integers before it comes to the model; or OneHotEncoder {_OF_SCIKIT_LEARN}",
)

LAYER = {
    "adapt": "adapted(data) returns a layer with the mean and variance of data, as in Normalization().adapted(data)",
    "activity_regularizer": "Penalties are of parameters alone: fit(..., penalties={'*.kernel': ...})",
    "batch_first": "Sequences are (N, time, features)",
    "batch_input_shape": _INPUT,
    "bias_constraint": _CONSTRAINTS,
    "bias_regularizer": _PENALTIES,
    "data_format": _CHANNELS_FIRST,
    "dtype": "A model has one dtype: lm.Sequential([...], dtype='float64')",
    "embeddings_regularizer": _PENALTIES,
    "get_weights": _OF_MODEL,
    "in_channels": "Layers see it from their input, and it is left out",
    "in_features": "Layers see it from their input, and it is left out",
    "inplace": "Layers never write into their input",
    "input_dim": _INPUT,
    "input_length": "Layers see it from their input, and it is left out",
    "input_shape": _INPUT,
    "kernel_constraint": _CONSTRAINTS,
    "kernel_regularizer": _PENALTIES,
    "mask_zero": "Masks and lengths are inputs like others: layer(x, lengths)",
    "name": "A name is given by .named('...'), as in layer.named('head')",
    "num_features": "Layers see it from their input, and it is left out",
    "output_shape": "A node has it: layer(x).shape; model.summary() shows all",
    "p": "It is called rate",
    "recurrent_dropout": "Dropout(rate) between recurrent layers",
    "recurrent_regularizer": _PENALTIES,
    "seed": "The model has it: lm.Sequential([...], seed=1)",
    "set_weights": _OF_MODEL,
    "state_dict": _OF_MODEL,
    "stateful": "States are inputs and outputs: return_state=True, and layer(x, state)",
    "trainable": "layer.frozen() is a copy that does not learn; model.freeze('name') and model.unfreeze('name') change "
    "a model",
    "weight": _OF_MODEL,
    "weights": _OF_MODEL,
}

LOSS = {
    "from_logits": "SoftmaxCrossEntropy takes logits, CategoricalCrossEntropy probabilities, and BinaryCrossEntropy "
    "has it",
    "label_smoothing": "Losses of classes and of yes or no have it",
    "name": "It goes by its registered name",
    "reduction": "The loss is the weighted mean over samples; sample_weight and class_weight weigh them",
    "weight": "fit(..., class_weight={0: 1.0, 1: 5.0}) weighs classes",
}

METRIC = {
    "class_id": "average=None gives a value for each class",
    "name": "It goes by its registered name, as in history['auc'] and history['val_auc']",
    "num_classes": "It is seen from the predictions",
    "num_thresholds": "AUC is exact, and has none",
    "reset_state": "A metric keeps nothing: update returns the sums of a batch, and result takes them",
    "update_state": "metric.update(prediction, target) returns the sums of a batch, and metric.result(sums) the value",
}

CALLBACK = {
    "baseline": "It begins with the first epoch's value",
    "initial_value_threshold": "It goes on from the best value of the file that is there",
    "model": "Every method gets it first: on_epoch_end(self, model, epoch, logs)",
    "params": "on_train_begin(self, model, epochs, batches) gets the number of epochs, and of batches in each",
    "save_freq": "fit(..., checkpoint=path) also writes within epochs",
    "save_weights_only": "A file has the model and its arrays, and model.load_weights(path) takes the arrays alone",
    "set_model": "Every method gets the model first: on_epoch_end(self, model, epoch, logs)",
    "start_from_epoch": "It begins with the first epoch",
    "verbose": "fit(..., progress=True) prints a line for each epoch, and why training stopped",
}

HISTORY = {
    "epoch": "range(history.epochs) counts them",
    "model": "fit changes the model that it is called on",
    "params": "history.epochs is how many epochs were finished",
}

_AVERAGE = "lm.optimizers.ExponentialMovingAverage(optimizer) stands around an optimizer"

OPTIMIZER = {
    "betas": "They are called beta_1 and beta_2",
    "clipnorm": "fit(..., clip_norm=1.0) scales all gradients together, as global_clipnorm does",
    "clipvalue": "fit(..., clip_value=1.0) holds gradients between bounds",
    "decay": "A schedule stands in place of the learning rate: Adam(lm.schedules.Exponential(0.01, 100))",
    "ema_momentum": _AVERAGE,
    "global_clipnorm": "fit(..., clip_norm=1.0) scales gradients down",
    "gradient_accumulation_steps": "lm.optimizers.GradientAccumulation(optimizer, steps) stands around an optimizer",
    "name": "It goes by its registered name",
    "params": "fit gives it the model's parameters: model.fit(x, y, loss=..., optimizer=lm.optimizers.Adam(0.001))",
    "state_dict": "model.optimizer_state is what it remembers, and model.save(path) writes it too",
    "step": _GRADIENTS,
    "use_ema": _AVERAGE,
    "weight_decay": "AdamW and Lion have it; penalties of fit, {'*.kernel': lm.regularization.L2(1e-4)}, go with all",
    "zero_grad": _GRADIENTS,
}


def hint(table: Mapping[str, str], name: str) -> str:
    """Return what a table has for a name as a sentence to end an error with, or an empty string.

    >>> hint(FIT, "clipvalue"), hint(FIT, "loss")
    (' It is called clip_value.', '')
    """
    return f" {table[name]}." if name in table else ""


def instead(table: Mapping[str, str], name: str) -> str:
    """Return what a table has for the name of a class, to end an error with, or an empty string.

    >>> instead(CALLBACKS, "ModelCheckpoint")
    '; what stands for it is Checkpoint(path)'
    """
    return f"; what stands for it is {table[name]}" if name in table else ""


def instruction_of(frame: FrameType) -> str:
    """Return the name of the instruction at which a frame is, such as ``"IMPORT_FROM"``."""
    return opname[frame.f_code.co_code[frame.f_lasti]]


def missing(module: str, name: str, ending: str = "") -> AttributeError | ImportError:
    """Return what the ``__getattr__`` of a module raises for a name that it does not have.

    ``from module import name`` swallows any `AttributeError`, its words too, and raises an `ImportError` of its own.
    Where such a statement asks, and there is something to add, that is an `ImportError` from the beginning.

    Arguments:
        ending: how the message goes on.

    >>> print(missing("lamella.callbacks", "ModelCheckpoint", instead(CALLBACKS, "ModelCheckpoint")))
    module 'lamella.callbacks' has no attribute 'ModelCheckpoint'; what stands for it is Checkpoint(path)
    """
    asking = sys._getframe(1).f_back  # whose instruction has called __getattr__
    if ending and asking and instruction_of(asking) == "IMPORT_FROM":
        return ImportError(f"cannot import name {name!r} from {module!r}{ending}", name=module)
    return AttributeError(f"module {module!r} has no attribute {name!r}{ending}")
