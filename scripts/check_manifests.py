#!/usr/bin/env python3
"""Holds rendered Kubernetes manifests to what their schemas cannot say.

    kubectl kustomize OVERLAY >rendered.yaml
    scripts/check_manifests.py rendered.yaml... [--help-text FILE] [--crds FOLDER]

Each file is what one cluster would get. Prints a line for every fault; ends with 1 if there is one. --help-text is what
`lacuna-worker --help` prints: every LACUNA_ variable must be of it. Custom resources are held to tests/deploy/schemas, which
have the fields that we use and no others; --crds is a folder of CustomResourceDefinitions, to hold them to the real thing.

Needs PyYAML and jsonschema.
"""

import argparse
import json
import pathlib
import re
import sys

import jsonschema
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
SCHEMAS = ROOT / "tests/deploy/schemas"
# What a worker exports, as OpenMetrics: a sample, to which tests/deploy/containers.py holds a real one.
EXPORTED = ROOT / "tests/deploy/metrics.txt"
# What the Pod Security standard "restricted" lets a pod mount.
RESTRICTED_VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
HEALTH = {"startupProbe": {"/health/ready"}, "readinessProbe": {"/health/ready"}, "livenessProbe": {"/health/live"}}
CLUSTER_WIDE = {"Namespace", "ClusterIssuer"}


class Rendered:
    """The objects that one cluster would get."""

    def __init__(self, objects):
        self.objects = [o for o in objects if o]

    def kind(self, *kinds):
        return [o for o in self.objects if o["kind"] in kinds]

    def pods(self):
        """What has a pod: its name, the pod's labels, its spec."""
        for o in self.kind("Deployment", "Job", "StatefulSet", "DaemonSet", "Pod"):
            pod = o if o["kind"] == "Pod" else o["spec"]["template"]
            yield f"{o['kind']} {name(o)}", pod.get("metadata", {}).get("labels", {}), pod["spec"]

    def selected(self, labels):
        """The pods that the labels of a selector mean."""
        return [pod for pod in self.pods() if matches(labels, pod[1])]

    def environment(self, container):
        """The variables of a container, those of its ConfigMaps among them."""
        values = {}
        for source in container.get("envFrom", []):
            wanted = source.get("configMapRef", {}).get("name")
            for o in self.kind("ConfigMap"):
                if name(o) == wanted:
                    values.update(o.get("data", {}))
        values.update({e["name"]: e.get("value", "") for e in container.get("env", [])})
        return values


def name(o):
    return o["metadata"]["name"]


def matches(wanted, labels):
    return all(labels.get(k) == v for k, v in wanted.items())


def containers(spec):
    return spec.get("initContainers", []) + spec["containers"]


def port_names(spec):
    """The ports of a pod's containers, by name and by number."""
    ports = [p for c in containers(spec) for p in c.get("ports", [])]
    return {p.get("name"): p["containerPort"] for p in ports} | {p["containerPort"]: p["containerPort"] for p in ports}


# Each check gives its faults, one text each.


def pod_security(rendered):
    """Pods meet the standard "restricted", and what it forgets: a read-only root, no token of Kubernetes, a limit of memory."""
    for who, _, spec in rendered.pods():
        pod = spec.get("securityContext", {})
        for field in ("hostNetwork", "hostPID", "hostIPC"):
            if spec.get(field):
                yield f"{who}: {field}"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{who}: automountServiceAccountToken is not false"
        for volume in spec.get("volumes", []):
            forbidden = set(volume) - {"name"} - RESTRICTED_VOLUMES
            if forbidden:
                yield f"{who}: a volume of the kind {', '.join(forbidden)}"
        for c in containers(spec):
            own = c.get("securityContext", {})
            both = pod | own
            what = f"{who}, container {c['name']}"
            if both.get("runAsNonRoot") is not True or both.get("runAsUser") in (None, 0):
                yield f"{what}: may run as root"
            if both.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
                yield f"{what}: no seccompProfile"
            if own.get("privileged") or own.get("allowPrivilegeEscalation") is not False:
                yield f"{what}: allowPrivilegeEscalation is not false"
            if own.get("capabilities", {}).get("drop") != ["ALL"] or own.get("capabilities", {}).get("add"):
                yield f"{what}: keeps capabilities"
            if own.get("readOnlyRootFilesystem") is not True:
                yield f"{what}: its root can be written to"
            if any(p.get("hostPort") for p in c.get("ports", [])):
                yield f"{what}: hostPort"
            if "memory" not in c.get("resources", {}).get("limits", {}):
                yield f"{what}: no limit of memory"
            if not re.search(r"(@sha256:[0-9a-f]{64}|:(?!latest$)[\w.-]+)$", c["image"]):
                yield f"{what}: the image {c['image']} is of no version"
    for o in rendered.kind("Namespace"):
        if o["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce") != "restricted":
            yield f"Namespace {name(o)}: does not enforce Pod Security \"restricted\""


def probes(rendered):
    """A worker has three probes, on ports that it has, at paths that it answers without TLS and token."""
    for who, _, spec in rendered.pods():
        if not who.startswith("Deployment"):
            continue
        ports = port_names(spec)
        for c in spec["containers"]:
            for kind, paths in HEALTH.items():
                get = c.get(kind, {}).get("httpGet")
                if not get:
                    yield f"{who}: no {kind} by HTTP"
                    continue
                if get["port"] not in ports:
                    yield f"{who}: {kind} asks the port {get['port']}, which no container has"
                elif ports[get["port"]] != ports.get("metrics"):
                    yield f"{who}: {kind} asks the port {get['port']}, where kubelet would need TLS; the metrics' port needs none"
                if get["path"] not in paths:
                    yield f"{who}: {kind} asks {get['path']}, not {' or '.join(paths)}"
            startup = c.get("startupProbe", {})
            if startup.get("periodSeconds", 10) * startup.get("failureThreshold", 3) < 300:
                yield f"{who}: startupProbe gives a model less than 5 minutes to load"


def selectors(rendered):
    """Whatever selects pods or services finds some, and the ports that it names are theirs."""
    for o in rendered.kind("Deployment"):
        wanted = o["spec"]["selector"]["matchLabels"]
        if not matches(wanted, o["spec"]["template"]["metadata"].get("labels", {})):
            yield f"Deployment {name(o)}: its selector does not match its own pods"
        if len(rendered.selected(wanted)) > 1:
            yield f"Deployment {name(o)}: its selector matches others' pods, too"
    for o in rendered.kind("Service"):
        found = rendered.selected(o["spec"]["selector"])
        if not found:
            yield f"Service {name(o)}: selects no pod"
        for who, _, spec in found:
            for p in o["spec"]["ports"]:
                target = p.get("targetPort", p["port"])
                if target not in port_names(spec):
                    yield f"Service {name(o)}: {who} has no port {target}"
    for o in rendered.kind("PodDisruptionBudget"):
        if not rendered.selected(o["spec"]["selector"]["matchLabels"]):
            yield f"PodDisruptionBudget {name(o)}: selects no pod"
        if o["spec"].get("maxUnavailable") == 0 or o["spec"].get("minAvailable") == "100%":
            yield f"PodDisruptionBudget {name(o)}: no node could ever be drained"
    for o in rendered.kind("NetworkPolicy"):
        wanted = o["spec"]["podSelector"].get("matchLabels", {})
        found = rendered.selected(wanted)
        if not found:
            yield f"NetworkPolicy {name(o)}: selects no pod"
        for rule in o["spec"].get("ingress", []):
            for p in rule.get("ports", []):
                for who, _, spec in found:
                    if p["port"] not in port_names(spec):
                        yield f"NetworkPolicy {name(o)}: {who} has no port {p['port']}"
    for o in rendered.kind("ServiceMonitor"):
        wanted = o["spec"]["selector"]["matchLabels"]
        found = [s for s in rendered.kind("Service") if matches(wanted, s["metadata"].get("labels", {}))]
        if not found:
            yield f"ServiceMonitor {name(o)}: selects no Service"
        for service in found:
            names = {p.get("name") for p in service["spec"]["ports"]}
            for end in o["spec"]["endpoints"]:
                if end["port"] not in names:
                    yield f"ServiceMonitor {name(o)}: Service {name(service)} has no port {end['port']}"
    for _, _, spec in rendered.pods():
        account = spec.get("serviceAccountName")
        if account and account not in [name(o) for o in rendered.kind("ServiceAccount")]:
            yield f"a pod runs as the ServiceAccount {account}, which is not there"


def volumes(rendered):
    """What is mounted is there, what is there is mounted, and the files that a worker is told of lie in it."""
    claims = {name(o) for o in rendered.kind("PersistentVolumeClaim")}
    certified = {o["spec"]["secretName"] for o in rendered.kind("Certificate")}
    for who, _, spec in rendered.pods():
        there = {v["name"]: v for v in spec.get("volumes", [])}
        mounted = {m["name"] for c in containers(spec) for m in c.get("volumeMounts", [])}
        for missing in sorted(mounted - set(there)):
            yield f"{who}: mounts {missing}, which is no volume"
        for unused in sorted(set(there) - mounted):
            yield f"{who}: the volume {unused} is mounted nowhere"
        if not who.startswith("Deployment"):
            continue
        secrets = {v["secret"]["secretName"] for v in there.values() if "secret" in v}
        for secret in sorted(certified - secrets):
            yield f"{who}: the certificate's Secret {secret} is mounted nowhere"
        for volume in there.values():
            claim = volume.get("persistentVolumeClaim", {}).get("claimName")
            if claim and claim not in claims:
                yield f"{who}: the claim {claim} is not there"
            secret = volume.get("secret")
            if secret and secret.get("defaultMode", 0o644) & 0o007:
                yield f"{who}: everybody may read the Secret {secret['secretName']}"
        for c in spec["containers"]:
            paths = [m["mountPath"] for m in c.get("volumeMounts", [])]
            if any("subPath" in m for m in c.get("volumeMounts", [])):
                yield f"{who}: a subPath, through which no change comes"
            for key, value in rendered.environment(c).items():
                if value.startswith("/") and not key.startswith("LD_") and not any(
                    value == p or value.startswith(p + "/") for p in paths
                ):
                    yield f"{who}: {key} is {value}, which lies in no volume"


def settings(rendered, known=None):
    """A worker's variables agree with its pod: addresses with ports, drain with grace, and TLS and a token there are."""
    for who, _, spec in rendered.pods():
        if not who.startswith("Deployment"):
            continue
        for c in spec["containers"]:
            values = rendered.environment(c)
            for source in c.get("envFrom", []):
                wanted = source.get("configMapRef", {}).get("name")
                if wanted and wanted not in [name(o) for o in rendered.kind("ConfigMap")]:
                    yield f"{who}: the ConfigMap {wanted} is not there"
            ports = {p.get("name"): p["containerPort"] for p in c.get("ports", [])}
            for key, port in (("LACUNA_LISTEN", "work"), ("LACUNA_METRICS", "metrics")):
                if values.get(key) != f"0.0.0.0:{ports.get(port)}":
                    yield f"{who}: {key} is {values.get(key)}, and the port {port} is {ports.get(port)}"
            for key in ("LACUNA_TLS_CERT", "LACUNA_TLS_KEY", "LACUNA_TOKEN_FILE"):
                if not values.get(key):
                    yield f"{who}: no {key}"
            for key in ("LACUNA_TOKEN", "LACUNA_INSECURE"):
                if key in values:
                    yield f"{who}: {key} has no place in a manifest"
            before = c.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
            if before < 5:
                yield f"{who}: preStop does not wait until balancers know"
            drain = int(values.get("LACUNA_DRAIN", 30))
            grace = spec.get("terminationGracePeriodSeconds", 30)
            if grace < before + drain + 10:
                yield f"{who}: killed after {grace} s; preStop and drain take {before + drain} s"
            if known is not None:
                for key in sorted(k for k in values if k.startswith("LACUNA_") and k not in known):
                    yield f"{who}: lacuna-worker knows no {key}"


def network(rendered):
    """By default nothing goes in or out; a worker has no egress; metrics are for one namespace; a caller stays with one pod."""
    policies = rendered.kind("NetworkPolicy")
    denying = [
        o for o in policies
        if o["spec"]["podSelector"] == {} and set(o["spec"].get("policyTypes", [])) == {"Ingress", "Egress"}
        and not o["spec"].get("ingress") and not o["spec"].get("egress")
    ]
    if not denying:
        yield "no NetworkPolicy denies everything by default"
    for o in policies:
        if o["spec"].get("egress"):
            yield f"NetworkPolicy {name(o)}: lets something out"
        for rule in o["spec"].get("ingress", []):
            wanted = {p["port"] for p in rule.get("ports", [])}
            if not wanted:
                yield f"NetworkPolicy {name(o)}: lets in to every port"
            if "metrics" in wanted and not rule.get("from"):
                yield f"NetworkPolicy {name(o)}: anybody may read metrics"
    for o in rendered.kind("Service"):
        targets = {p.get("targetPort") for p in o["spec"]["ports"]}
        outside = o["spec"].get("type", "ClusterIP") != "ClusterIP"
        if outside and targets != {"work"}:
            yield f"Service {name(o)}: more than the port work can be reached from outside"
        if outside and o["spec"].get("externalTrafficPolicy") != "Local":
            yield f"Service {name(o)}: callers' addresses are lost, and so is affinity"
        if "work" in targets and o["spec"].get("sessionAffinity") != "ClientIP":
            yield f"Service {name(o)}: a picture's requests would go to several pods"


def scaling(rendered):
    """One autoscaler, of a Deployment that is there, by metrics that a worker exports."""
    exported = exported_metrics()
    targets = []
    deployments = {name(o): o for o in rendered.kind("Deployment")}
    for o in rendered.kind("HorizontalPodAutoscaler", "ScaledObject"):
        who = f"{o['kind']} {name(o)}"
        target = o["spec"]["scaleTargetRef"]["name"]
        targets.append(target)
        if target not in deployments:
            yield f"{who}: scales {target}, which is not there"
        elif "replicas" in deployments[target]["spec"]:
            yield f"{who}: the Deployment says replicas, and would undo it at every apply"
        wanted = [m["pods"]["metric"]["name"] for m in o["spec"].get("metrics", []) if m["type"] == "Pods"]
        for trigger in o["spec"].get("triggers", []):
            wanted += metrics_of(trigger["metadata"]["query"])
        if not wanted:
            yield f"{who}: scales by no metric of workers"
        for metric in wanted:
            if metric not in exported:
                yield f"{who}: no worker exports {metric}"
            elif exported[metric] != "gauge":
                yield f"{who}: {metric} is no gauge"
    for target in sorted(set(targets)):
        if targets.count(target) > 1:
            yield f"{target} is scaled twice"


def store(rendered):
    """A worker that keeps what is pushed has the store to itself, may write to it, and finds the room that it was promised."""
    claims = {name(o): o["spec"]["resources"]["requests"]["storage"] for o in rendered.kind("PersistentVolumeClaim")}
    most = [o["spec"].get("maxReplicas") or o["spec"].get("maxReplicaCount") or 100
            for o in rendered.kind("HorizontalPodAutoscaler", "ScaledObject")]
    for o in rendered.kind("Deployment"):
        spec = o["spec"]["template"]["spec"]
        there = {v["name"]: v for v in spec.get("volumes", [])}
        for c in spec["containers"]:
            values = rendered.environment(c)
            path = values.get("LACUNA_STORE")
            if not path:
                continue
            who = f"Deployment {name(o)}"
            strategy = o["spec"].get("strategy", {})
            if strategy.get("type") != "Recreate" and strategy.get("rollingUpdate", {}).get("maxSurge") != 0:
                yield f"{who}: a new pod would find the store in use by the old one"
            if max([o["spec"].get("replicas", 1), *most]) > 1:
                yield f"{who}: several pods would have one store"
            for mount in c.get("volumeMounts", []):
                if path != mount["mountPath"] and not path.startswith(mount["mountPath"] + "/"):
                    continue
                claim = there.get(mount["name"], {}).get("persistentVolumeClaim")
                if claim is None:
                    yield f"{who}: the store {path} does not outlast its pod"
                    continue
                if mount.get("readOnly") or claim.get("readOnly"):
                    yield f"{who}: the store {path} cannot be written to"
                size, room = values.get("LACUNA_STORE_SIZE", "20GB"), claims.get(claim["claimName"], "0")
                if bytes_of(size) > bytes_of(room):
                    yield f"{who}: the store may take {size}, and the claim has {room}"


def bytes_of(text):
    """A number of bytes, as Kubernetes or a flag of the worker writes it."""
    number, unit = re.fullmatch(r"(\d+)\s*([kKMGT]?i?)B?", text).groups()
    return int(number) * (1024 if unit.endswith("i") else 1000) ** " kMGT".index((unit[:1] or " ").replace("K", "k"))


def custom_resources(rendered, schemas=None):
    """What kubernetes-validate has no schema for."""
    schemas = schemas or {p.stem: json.loads(p.read_text()) for p in SCHEMAS.glob("*.json")}
    for o in rendered.objects:
        group = o["apiVersion"].split("/")[0]
        if "." not in group or group.endswith(".k8s.io"):
            continue
        schema = schemas.get(o["kind"])
        if schema is None:
            yield f"{o['kind']} {name(o)}: there is no schema for it"
            continue
        for error in jsonschema.Draft202012Validator(schema).iter_errors(o):
            where = ".".join(str(p) for p in error.absolute_path)
            yield f"{o['kind']} {name(o)}: {where or 'the whole'}: {error.message}"


def whole(rendered):
    """Everything is in the namespace of the project, nothing is there twice, and no secret is written down."""
    seen = set()
    for o in rendered.objects:
        who = f"{o['kind']} {name(o)}"
        if who in seen:
            yield f"{who}: is there twice"
        seen.add(who)
        if o["kind"] not in CLUSTER_WIDE and o["metadata"].get("namespace") != "lacuna":
            yield f"{who}: is in the namespace {o['metadata'].get('namespace')}"
        if o["kind"] == "Secret":
            yield f"{who}: a secret in a manifest"
    if not rendered.objects:
        yield "nothing is rendered"


CHECKS = [pod_security, probes, selectors, volumes, settings, network, scaling, store, custom_resources, whole]


def faults(objects, known=None, schemas=None, checks=None):
    """All that is wrong with what one cluster would get."""
    rendered = Rendered(objects)
    more = {settings: {"known": known}, custom_resources: {"schemas": schemas}}
    return [fault for check in checks or CHECKS for fault in check(rendered, **more.get(check, {}))]


def exported_metrics(text=None):
    """The metrics of a scrape, each with its type; counters by the name that queries use."""
    text = classic(EXPORTED.read_text() if text is None else text)
    return dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))


def classic(text):
    """OpenMetrics in Prometheus's older format, which `promtool check metrics` reads: there a counter's name ends with _total."""
    counters = set(re.findall(r"^# TYPE (\S+) counter$", text, re.M))
    lines = [line for line in text.splitlines() if not line.startswith(("# UNIT", "# EOF"))]

    def renamed(match):
        return match[1] + (match[2] + "_total" if match[2] in counters and not match[2].endswith("_total") else match[2])

    return "".join(re.sub(r"^(# (?:TYPE|HELP) )(\S+)", renamed, line) + "\n" for line in lines)


def metrics_of(query):
    """The names of workers' metrics in a PromQL query."""
    return re.findall(r"\blacuna_[a-z0-9_]+", query)


def strict(schema):
    """A CustomResourceDefinition's schema, such that a field that it does not know is a fault."""
    if isinstance(schema, list):
        return [strict(s) for s in schema]
    if not isinstance(schema, dict):
        return schema
    out = {k: strict(v) for k, v in schema.items()}
    if isinstance(out.get("properties"), dict) and not out.get("x-kubernetes-preserve-unknown-fields"):
        out.setdefault("additionalProperties", False)
    if out.get("x-kubernetes-int-or-string"):
        out.pop("type", None)
    return out


def definitions(folder):
    """The schemas of a folder's CustomResourceDefinitions, by kind."""
    found = {}
    for path in sorted(pathlib.Path(folder).glob("*.yaml")):
        for o in yaml.safe_load_all(path.read_text()):
            if o and o["kind"] == "CustomResourceDefinition":
                version = next(v for v in o["spec"]["versions"] if v["storage"])
                schema = strict(version["schema"]["openAPIV3Schema"])
                # What every object has, a definition does not say.
                schema["properties"]["metadata"] = {"type": "object"}
                found[o["spec"]["names"]["kind"]] = schema
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    parser.add_argument("--classic", type=pathlib.Path, help="only print this scrape in the format that promtool reads")
    parser.add_argument("--help-text", type=pathlib.Path, help="what `lacuna-worker --help` prints")
    parser.add_argument("--crds", type=pathlib.Path, help="a folder of CustomResourceDefinitions")
    asked = parser.parse_args()
    if asked.classic:
        print(classic(asked.classic.read_text()), end="")
        return 0
    known = set(re.findall(r"\[env: (\w+)", asked.help_text.read_text())) if asked.help_text else None
    schemas = definitions(asked.crds) if asked.crds else None
    wrong = 0
    for path in asked.files:
        for fault in faults(list(yaml.safe_load_all(path.read_text())), known, schemas):
            print(f"{path.name}: {fault}")
            wrong += 1
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
