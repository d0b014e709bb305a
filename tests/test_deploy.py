"""The files in examples/deploy: they fit the published schemas, each other, and the program that they start."""

from __future__ import annotations

import argparse
import copy
import json
import re
import shlex
import signal
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from pathlib import Path

import jsonschema
import pytest
from deploy_schemas import KEPT, MANIFESTS, ROOT, resources
from onnx import TensorProto, helper, save
from pages import serving

import lamella_serve
from lamella_serve.commands import lamella_commands

FOLDER = ROOT / "examples" / "deploy"
RESOURCES = [one for found in resources().values() for one in found]
README = (FOLDER / "README.md").read_text()


def name_of(resource):
    return f"{resource['kind']} {resource['metadata']['name']}"


def refused(resource):
    """What the published schema says against a resource."""
    schema = json.loads(KEPT.read_text())["schemas"][f"{resource['apiVersion']}/{resource['kind']}"]
    return [error.message for error in jsonschema.Draft202012Validator(schema).iter_errors(resource)]


def of_kind(kind):
    return [one for one in RESOURCES if one["kind"] == kind]


PODS = {one["metadata"]["name"]: one["spec"] for one in of_kind("ServingRuntime")}
PODS |= {f"{one['metadata']['name']} deployment": one["spec"]["template"]["spec"] for one in of_kind("Deployment")}
SERVED = {name: spec["containers"][0] for name, spec in PODS.items() if "lamella" in spec["containers"][0]["image"]}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Softmax", ["x"], ["y"])], "graph", [x], [y])
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(file, {"labels": '["no", "yes"]'})
    path = tmp_path_factory.mktemp("models") / "digits.onnx"
    save(file, path)
    return path


def instructions():
    """The instructions of the Containerfile: words and what stands behind them."""
    text = re.sub(r"^#.*\n", "", (FOLDER / "Containerfile").read_text(), flags=re.M).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line]


def argument(name):
    """What the container runs, as the Containerfile's last instruction of that name says."""
    rest = dict(instructions())[name]
    return json.loads(rest[rest.index("[") :])


def parsed(arguments):
    """The arguments of ``lamella serve``; raises SystemExit where they are wrong."""
    parser = argparse.ArgumentParser()
    lamella_commands()["serve"].configure(parser)
    return parser.parse_args(arguments)


def test_there_are_manifests():
    assert [path.name for path in MANIFESTS] == ["kserve.yaml", "kubernetes.yaml", "triton.yaml"]
    assert len(SERVED) == 2


@pytest.mark.parametrize("resource", RESOURCES, ids=name_of)
def test_manifests_fit_the_published_schemas(resource):
    assert refused(resource) == [], "run tests/deploy_schemas.py if the field is a new one"


def test_the_schemas_refuse_what_is_wrong():
    deployment, runtime = (of_kind(kind)[0] for kind in ("Deployment", "ServingRuntime"))
    for resource, change in (
        (deployment, lambda spec: spec.update(replica=2)),
        (deployment, lambda spec: spec.update(replicas="2")),
        (deployment, lambda spec: spec.pop("selector")),
        (deployment, lambda spec: spec["template"]["spec"]["containers"][0].pop("name")),
        (deployment, lambda spec: spec["template"]["spec"]["containers"][0]["readinessProbe"]["httpGet"].pop("port")),
        (runtime, lambda spec: spec["containers"][0].update(arguments=[])),
        (runtime, lambda spec: spec["supportedModelFormats"][0].update(version=1)),
        (runtime, lambda spec: spec["supportedModelFormats"][0].pop("name")),
    ):
        changed = copy.deepcopy(resource)
        change(changed["spec"])
        assert len(refused(changed)) == 1


@pytest.mark.parametrize("spec", PODS.values(), ids=PODS)
def test_the_parts_of_a_pod_fit(spec):
    [container] = spec["containers"]
    ports = {one.get("name"): one["containerPort"] for one in container["ports"]}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        if probe in container:
            port = container[probe]["httpGet"]["port"]
            assert port in ports or port in ports.values()
    volumes = {one["name"] for one in spec.get("volumes", [])}
    assert {one["name"] for one in container.get("volumeMounts", [])} == volumes
    assert (container["securityContext"] | spec.get("securityContext", {}))["runAsNonRoot"] is True


@pytest.mark.parametrize("service", of_kind("Service"), ids=name_of)
def test_a_service_finds_its_pods(service):
    wanted = service["spec"]["selector"]
    [deployment] = [one for one in of_kind("Deployment") if one["spec"]["template"]["metadata"]["labels"] == wanted]
    assert deployment["spec"]["selector"]["matchLabels"] == wanted
    ports = {one["name"] for one in deployment["spec"]["template"]["spec"]["containers"][0]["ports"]}
    assert {one["targetPort"] for one in service["spec"]["ports"]} <= ports


def test_the_inference_service_finds_its_runtime():
    runtime, service = (of_kind(kind)[0] for kind in ("ServingRuntime", "InferenceService"))
    asked = service["spec"]["predictor"]["model"]
    assert asked["runtime"] == runtime["metadata"]["name"]
    assert asked["modelFormat"]["name"] in {one["name"] for one in runtime["spec"]["supportedModelFormats"]}
    assert asked["protocolVersion"] in runtime["spec"]["protocolVersions"]
    assert runtime["spec"]["containers"][0]["name"] == "kserve-container"  # KServe looks for it
    port = runtime["spec"]["containers"][0]["ports"][0]["containerPort"]
    assert runtime["spec"]["annotations"]["prometheus.kserve.io/port"] == str(port)


@pytest.mark.parametrize("container", SERVED.values(), ids=SERVED)
def test_the_program_takes_the_arguments(container):
    arguments = parsed(container["args"])
    assert arguments.host == "0.0.0.0"
    assert arguments.port in {one["containerPort"] for one in container["ports"]}
    mounted = {one["mountPath"] for one in container.get("volumeMounts", [])} | {"/mnt/models"}  # KServe's own
    assert set(arguments.paths) <= mounted
    if arguments.token_file is not None:
        file = Path(arguments.token_file)
        assert str(file.parent) in mounted
        assert f"create secret generic lamella-token --from-file={file.name}\n" in README


def test_probes_ask_for_what_is_there(model):
    known = {route.path for route in lamella_serve.application(model).routes}
    containers = [spec["containers"][0] for spec in PODS.values()]
    asked = {one["httpGet"]["path"] for container in containers for key, one in container.items() if "Probe" in key}
    assert asked == {"/v2/health/live", "/v2/health/ready"}
    assert asked <= known


def test_the_repository_of_triton_is_what_lamella_writes(model, tmp_path):
    lamella_serve.export_repository([model], tmp_path)
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    [volume], [mount] = PODS["triton deployment"]["volumes"], PODS["triton deployment"]["containers"][0]["volumeMounts"]
    folder = Path(mount["mountPath"]).relative_to("/models")
    assert {str(folder / one["path"]) for one in volume["configMap"]["items"]} == written
    for one in volume["configMap"]["items"]:
        assert Path(one["path"]).name == one["key"]
        assert f"--from-file=repository/{folder / one['path']}" in README


def test_a_volume_of_kubernetes_is_served(model, tmp_path):
    """It has the files in a hidden folder, a link to that, and links into this link."""
    (tmp_path / "..2026").mkdir()
    (tmp_path / "..2026" / "digits.onnx").write_bytes(model.read_bytes())
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "digits.onnx").symlink_to("..data/digits.onnx")
    assert [one.name for one in lamella_serve.application(tmp_path).state.repository] == ["digits"]


def test_names_in_the_readme_are_those_of_the_manifests():
    made = set(re.findall(r"kubectl create (?:configmap|secret generic) (\S+)", README))
    volumes = [volume for spec in PODS.values() for volume in spec.get("volumes", [])]
    assert made == {one.get("configMap", {}).get("name") or one["secret"]["secretName"] for one in volumes}
    [image] = {container["image"] for container in SERVED.values()}
    assert set(re.findall(r"registry\.example\.com/\S+", README)) == {image}
    applied = re.findall(r"--filename (examples/deploy/\S+)", README)
    assert {ROOT / path for path in applied} == set(MANIFESTS)


def test_the_image_holds_what_the_package_needs():
    copied = [shlex.split(rest) for word, rest in instructions() if word == "COPY" and "--from" not in rest]
    sources = {source for *sources, _ in copied for source in sources}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {Path(path).parts[0] for path in (*packages, *project["project"]["license-files"])}
    needed |= {"pyproject.toml", "hatch_build.py", "README.md"}  # the last is read by the one before
    assert sources == needed
    [extra] = re.findall(r'pip install .*"\.\[(\w+)\]"', dict(instructions())["RUN"])
    assert extra in project["project"]["optional-dependencies"]


def test_the_image_runs_as_nobody():
    user = dict(instructions())["USER"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "Kubernetes can tell only of a number that it is not root's"


def test_what_the_container_starts(model, tmp_path):
    """Its own command, but for the folder, the token's file and the address, which are this machine's."""
    command = argument("ENTRYPOINT") + argument("CMD")
    assert command[:2] == ["lamella", "serve"]
    assert parsed(command[2:]).host == "0.0.0.0"
    token = tmp_path / "token"
    here = {"/models": str(model.parent), "0.0.0.0": "127.0.0.1", parsed(command[2:]).token_file: str(token)}
    arguments = [here.get(word, word) for word in command[2:]]
    with pytest.raises(AssertionError, match="ended"), serving(*arguments):
        pass  # there is no token
    token.write_text("secret\n")
    with serving(*arguments) as port:
        assert healthy(port)
        body = b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0, 0]}]}'
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v2/models/digits/infer", body)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(request)
        request.add_header("Authorization", "Bearer secret")
        with urllib.request.urlopen(request) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [0.5, 0.5]
    assert not healthy(port)


def healthy(port):
    """What the container's health check says of the server at a port."""
    _, *command = argument("HEALTHCHECK")
    assert "127.0.0.1:8000" in command[-1]
    command[-1] = command[-1].replace("8000", port)
    return subprocess.run([sys.executable, *command], capture_output=True, timeout=30).returncode == 0


def test_a_server_that_loads_ends_when_it_is_told(model):
    """As the first process of a container it would not, if it left the signal to its default."""
    slow = "import time, lamella_serve, lamella.cli\n"
    slow += "lamella_serve.application = lambda *_, **__: print('loads', flush=True) or time.sleep(60)\n"
    slow += f"lamella.cli.main(['serve', {str(model)!r}])"
    with subprocess.Popen([sys.executable, "-c", slow], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "loads\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
