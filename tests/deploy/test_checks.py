"""Breaks manifests and queries in each way that is checked, and sees that it is found.

    KUBECTL=... python3 -m unittest discover -s tests/deploy
"""

import copy
import os
import pathlib
import subprocess
import sys
import tempfile
import tomllib
import unittest

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import check_manifests  # noqa: E402
import check_monitoring  # noqa: E402

KUBERNETES = ROOT / "configs/kubernetes"


def render(folder):
    command = [os.environ.get("KUBECTL", "kubectl"), "kustomize", str(folder)]
    return list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def render_with(*components):
    """The base, with components."""
    with tempfile.TemporaryDirectory() as folder:
        # kustomize takes no path from the root.
        there = os.path.relpath(KUBERNETES, os.path.realpath(folder))
        text = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization", "resources": [f"{there}/base"],
                "components": [f"{there}/components/{c}" for c in components]}
        (pathlib.Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(text))
        return render(folder)


def one(objects, kind, name=None):
    return next(o for o in objects if o["kind"] == kind and name in (None, o["metadata"]["name"]))


def pod(objects):
    return one(objects, "Deployment")["spec"]["template"]["spec"]


def container(objects):
    return pod(objects)["containers"][0]


def variables(objects):
    return one(objects, "ConfigMap")["data"]


def policy(objects, name):
    return one(objects, "NetworkPolicy", name)["spec"]


def put(where, key, value):
    where[key] = value


def renamed(secret):
    def change(volumes):
        for v in volumes:
            if "secret" in v and v["secret"]["secretName"] == secret:
                v["secret"]["secretName"] = "another"
    return change


def pushed(objects):
    """The same with a worker to which models are pushed."""
    objects[:] = render_with("pushed-models")
    return objects


# A check, what is broken, and what it must say.
BROKEN = [
    ("pod_security", lambda o: pod(o)["securityContext"].pop("runAsNonRoot"), "may run as root"),
    ("pod_security", lambda o: put(container(o)["securityContext"], "runAsUser", 0), "may run as root"),
    ("pod_security", lambda o: pod(o)["securityContext"].pop("seccompProfile"), "no seccompProfile"),
    ("pod_security", lambda o: container(o)["securityContext"].pop("allowPrivilegeEscalation"), "allowPrivilegeEscalation"),
    ("pod_security", lambda o: put(container(o)["securityContext"], "privileged", True), "allowPrivilegeEscalation"),
    ("pod_security", lambda o: container(o)["securityContext"].pop("capabilities"), "keeps capabilities"),
    ("pod_security", lambda o: put(container(o)["securityContext"]["capabilities"], "add", ["NET_RAW"]), "keeps capabilities"),
    ("pod_security", lambda o: container(o)["securityContext"].pop("readOnlyRootFilesystem"), "can be written to"),
    ("pod_security", lambda o: put(container(o)["ports"][0], "hostPort", 7700), "hostPort"),
    ("pod_security", lambda o: put(pod(o), "hostNetwork", True), "hostNetwork"),
    ("pod_security", lambda o: pod(o).pop("automountServiceAccountToken"), "automountServiceAccountToken"),
    ("pod_security", lambda o: put(pod(o)["volumes"], 0, {"name": "model", "hostPath": {"path": "/"}}), "of the kind hostPath"),
    ("pod_security", lambda o: container(o)["resources"]["limits"].pop("memory"), "no limit of memory"),
    ("pod_security", lambda o: put(container(o), "image", "lacuna-worker"), "of no version"),
    ("pod_security", lambda o: put(container(o), "image", "lacuna-worker:latest"), "of no version"),
    ("pod_security", lambda o: one(o, "Namespace")["metadata"]["labels"].clear(), "does not enforce"),
    ("probes", lambda o: container(o).pop("startupProbe"), "no startupProbe"),
    ("probes", lambda o: put(container(o)["readinessProbe"]["httpGet"], "port", "metric"), "which no container has"),
    ("probes", lambda o: put(container(o)["readinessProbe"]["httpGet"], "port", "work"), "would need TLS"),
    ("probes", lambda o: put(container(o)["livenessProbe"]["httpGet"], "path", "/health/ready"), "not /health/live"),
    ("probes", lambda o: put(container(o)["startupProbe"], "failureThreshold", 3), "less than 5 minutes"),
    ("selectors", lambda o: one(o, "Deployment")["spec"]["template"]["metadata"]["labels"].clear(), "its own pods"),
    ("selectors", lambda o: one(o, "Service")["spec"]["selector"].update(a="b"), "Service lacuna-worker: selects no pod"),
    ("selectors", lambda o: put(one(o, "Service")["spec"]["ports"][0], "targetPort", "https"), "has no port https"),
    ("selectors", lambda o: one(o, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"].update(a="b"), "selects no pod"),
    ("selectors", lambda o: put(one(o, "PodDisruptionBudget")["spec"], "maxUnavailable", 0), "could ever be drained"),
    ("selectors", lambda o: policy(o, "allow-work")["podSelector"]["matchLabels"].update(a="b"), "selects no pod"),
    ("selectors", lambda o: put(policy(o, "allow-work")["ingress"][0]["ports"][0], "port", "https"), "has no port https"),
    ("selectors", lambda o: one(o, "ServiceMonitor")["spec"]["selector"]["matchLabels"].update(a="b"), "selects no Service"),
    ("selectors", lambda o: put(one(o, "ServiceMonitor")["spec"]["endpoints"][0], "port", "web"), "has no port web"),
    ("selectors", lambda o: put(pod(o), "serviceAccountName", "root"), "ServiceAccount root"),
    ("selectors", lambda o: o.append({**copy.deepcopy(one(o, "Deployment")), "kind": "StatefulSet"}), "others' pods"),
    ("volumes", lambda o: pod(o)["volumes"].pop(), "which is no volume"),
    ("volumes", lambda o: container(o)["volumeMounts"].pop(), "is mounted nowhere"),
    ("volumes", lambda o: put(pod(o)["volumes"][0]["persistentVolumeClaim"], "claimName", "models"), "is not there"),
    ("volumes", lambda o: put(pod(o)["volumes"][1]["secret"], "defaultMode", 0o444), "everybody may read"),
    ("volumes", lambda o: put(container(o)["volumeMounts"][1], "subPath", "tls.crt"), "a subPath"),
    ("volumes", lambda o: put(variables(o), "LACUNA_TLS_KEY", "/secrets/key"), "lies in no volume"),
    ("volumes", lambda o: renamed("lacuna-tls")(pod(o)["volumes"]), "the certificate's Secret lacuna-tls"),
    ("settings", lambda o: put(one(o, "ConfigMap")["metadata"], "name", "another"), "the ConfigMap"),
    ("settings", lambda o: put(variables(o), "LACUNA_LISTEN", "127.0.0.1:7700"), "LACUNA_LISTEN"),
    ("settings", lambda o: put(variables(o), "LACUNA_METRICS", "0.0.0.0:9090"), "LACUNA_METRICS"),
    ("settings", lambda o: variables(o).pop("LACUNA_TLS_CERT"), "no LACUNA_TLS_CERT"),
    ("settings", lambda o: variables(o).pop("LACUNA_TOKEN_FILE"), "no LACUNA_TOKEN_FILE"),
    ("settings", lambda o: put(variables(o), "LACUNA_INSECURE", "true"), "LACUNA_INSECURE"),
    ("settings", lambda o: put(variables(o), "LACUNA_TOKEN", "x"), "LACUNA_TOKEN has no place"),
    ("settings", lambda o: put(variables(o), "LACUNA_DRAIN", "3600"), "killed after"),
    ("settings", lambda o: container(o).pop("lifecycle"), "preStop"),
    ("settings", lambda o: put(variables(o), "LACUNA_DRAINS", "1"), "knows no LACUNA_DRAINS"),
    ("network", lambda o: put(policy(o, "default-deny"), "policyTypes", ["Ingress"]), "by default"),
    ("network", lambda o: put(policy(o, "allow-work"), "egress", [{}]), "lets something out"),
    ("network", lambda o: put(policy(o, "allow-work"), "ingress", [{}]), "every port"),
    ("network", lambda o: policy(o, "allow-metrics")["ingress"][0].pop("from"), "anybody may read metrics"),
    ("network", lambda o: put(one(o, "Service")["spec"]["ports"][0], "targetPort", "metrics"), "more than the port work"),
    ("network", lambda o: one(o, "Service")["spec"].pop("externalTrafficPolicy"), "addresses are lost"),
    ("network", lambda o: one(o, "Service")["spec"].pop("sessionAffinity"), "several pods"),
    ("scaling", lambda o: put(one(o, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"], "name", "w"), "scales w"),
    ("scaling", lambda o: put(one(o, "Deployment")["spec"], "replicas", 2), "at every apply"),
    ("scaling", lambda o: put(one(o, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"], "name", "queue"), "exports queue"),
    ("scaling", lambda o: put(one(o, "HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"], "name", "lacuna_refusals_total"), "no gauge"),
    ("scaling", lambda o: put(one(o, "HorizontalPodAutoscaler")["spec"], "metrics", []), "by no metric"),
    ("scaling", lambda o: o.append(one(render_with("keda"), "ScaledObject")), "is scaled twice"),
    ("store", lambda o: put(one(pushed(o), "Deployment")["spec"]["strategy"]["rollingUpdate"], "maxSurge", 1), "in use by the old one"),
    ("store", lambda o: put(one(pushed(o), "HorizontalPodAutoscaler")["spec"], "maxReplicas", 2), "several pods"),
    ("store", lambda o: pushed(o).append(one(render_with("keda"), "ScaledObject")), "several pods"),
    ("store", lambda o: put(container(pushed(o))["volumeMounts"][0], "readOnly", True), "cannot be written to"),
    ("store", lambda o: put(pod(pushed(o))["volumes"][0]["persistentVolumeClaim"], "readOnly", True), "cannot be written to"),
    ("store", lambda o: put(variables(pushed(o)), "LACUNA_STORE", "/cache"), "does not outlast"),
    ("store", lambda o: put(variables(pushed(o)), "LACUNA_STORE_SIZE", "11GB"), "the claim has 10Gi"),
    ("custom_resources", lambda o: put(one(o, "Certificate")["spec"], "dnsName", "x"), "dnsName"),
    ("custom_resources", lambda o: one(o, "Certificate")["spec"].pop("issuerRef"), "issuerRef"),
    ("custom_resources", lambda o: put(one(o, "ServiceMonitor")["spec"]["endpoints"][0], "interval", 15), "interval"),
    ("custom_resources", lambda o: put(one(o, "ServiceMonitor"), "kind", "PodMonitor"), "no schema"),
    ("whole", lambda o: put(one(o, "Deployment")["metadata"], "namespace", "default"), "is in the namespace default"),
    ("whole", lambda o: o.append(one(o, "Service")), "is there twice"),
    ("whole", lambda o: o.append({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": "lacuna"}}), "a secret"),
    ("whole", lambda o: o.clear(), "nothing is rendered"),
]


class Manifests(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.rendered = render(KUBERNETES / "overlays/provider-a")
        cls.known = set(variables(cls.rendered))

    def test_as_it_is_nothing_is_wrong(self):
        self.assertEqual(check_manifests.faults(self.rendered, self.known), [])

    def test_whatever_is_broken_is_found_by_its_check(self):
        by_name = {check.__name__: check for check in check_manifests.CHECKS}
        for check, breaking, said in BROKEN:
            with self.subTest(check=check, said=said):
                objects = copy.deepcopy(self.rendered)
                breaking(objects)
                found = check_manifests.faults(objects, self.known, checks=[by_name[check]])
                self.assertTrue(any(said in fault for fault in found), found)

    def test_every_check_is_broken_here(self):
        self.assertEqual({check for check, _, _ in BROKEN}, {check.__name__ for check in check_manifests.CHECKS})

    def test_every_component_can_be_left_out_or_taken(self):
        kinds = {"cert-manager": "Certificate", "service-monitor": "ServiceMonitor", "keda": "ScaledObject",
                 "cpu": None, "client-certificates": None, "pushed-models": None}
        self.assertEqual(set(kinds), {p.name for p in (KUBERNETES / "components").iterdir()})
        for chosen in [(), *[(c,) for c in kinds], tuple(kinds)]:
            with self.subTest(components=chosen):
                objects = render_with(*chosen)
                self.assertEqual(check_manifests.faults(objects), [])
                custom = {o["kind"] for o in objects} & set(filter(None, kinds.values()))
                self.assertEqual(custom, {kinds[c] for c in chosen} - {None})

    def test_keda_takes_the_autoscalers_place(self):
        self.assertNotIn("HorizontalPodAutoscaler", {o["kind"] for o in render_with("keda")})

    def test_a_worker_that_models_are_pushed_to_needs_none(self):
        values = variables(render_with("pushed-models"))
        self.assertNotIn("LACUNA_MODEL", values)
        self.assertEqual(values["LACUNA_STORE"], "/model")
        for text, number in [("9GB", 9e9), ("10Gi", 10 << 30), ("3", 3), ("5KiB", 5 << 10), ("2kB", 2000)]:
            self.assertEqual(check_manifests.bytes_of(text), number)

    def test_the_store_s_component_goes_with_every_overlay(self):
        for overlay in (KUBERNETES / "overlays").iterdir():
            with self.subTest(overlay=overlay.name), tempfile.TemporaryDirectory() as folder:
                there = os.path.relpath(KUBERNETES, os.path.realpath(folder))
                text = yaml.safe_load((overlay / "kustomization.yaml").read_text())
                text["resources"] = [f"{there}/base" if r == "../../base" else r for r in text["resources"]]
                taken = [c.replace("../..", there) for c in text.get("components", [])]
                text["components"] = [*taken, f"{there}/components/pushed-models"]
                (pathlib.Path(folder) / "kustomization.yaml").write_text(yaml.safe_dump(text))
                found = check_manifests.faults(render(folder))
                self.assertEqual(found, [])

    def test_without_a_gpu_none_is_asked_for(self):
        objects = render_with("cpu")
        self.assertNotIn("nvidia", yaml.safe_dump(pod(objects)))
        self.assertEqual(variables(objects)["LACUNA_DEVICE"], "cpu")

    def test_pods_to_be_applied_alone_are_restricted_too(self):
        for file in KUBERNETES.glob("*.yaml"):
            with self.subTest(file=file.name):
                objects = list(yaml.safe_load_all(file.read_text()))
                self.assertEqual(check_manifests.faults(objects, checks=[check_manifests.pod_security]), [])


class Compose(unittest.TestCase):
    """No compose runs here, so its file is only read."""

    @classmethod
    def setUpClass(cls):
        cls.services = yaml.safe_load((ROOT / "configs/compose.yaml").read_text())["services"]

    def test_the_fleet_file_has_the_ports_that_are_published(self):
        workers = tomllib.loads((ROOT / "configs/compose.fleet.toml").read_text())["worker"]
        published = {s["ports"][0].rsplit(":", 1)[0] for s in self.services.values()}
        self.assertEqual({w["url"] for w in workers}, {f"http://{p}" for p in published})
        self.assertEqual(len(published), 4)

    def test_four_are_confined_and_reached_by_loopback_alone(self):
        networks = set()
        for name, service in self.services.items():
            with self.subTest(service=name):
                self.assertTrue(all(p.startswith("127.0.0.1:") for p in service["ports"]))
                self.assertEqual((service["user"], service["read_only"], service["cap_drop"]), ("65532:65532", True, ["ALL"]))
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                networks.update(service["networks"])
        self.assertEqual(len(networks), 4)

    def test_the_image_is_that_of_the_manifests(self):
        images = {s["image"] for s in self.services.values()}
        self.assertEqual(images, {container(render(KUBERNETES / "base"))["image"]})
        self.assertEqual(images, {o["spec"]["containers"][0]["image"] for o in [yaml.safe_load((KUBERNETES / "model-loader.yaml").read_text())]})
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        self.assertEqual(images, {f"lacuna-worker:{version}"})


class Definitions(unittest.TestCase):
    def test_a_real_definition_takes_no_field_that_it_does_not_know(self):
        properties = {"spec": {"type": "object", "properties": {"a": {"x-kubernetes-int-or-string": True}}}, "kind": {}, "apiVersion": {}}
        schema = {"openAPIV3Schema": {"type": "object", "properties": properties}}
        definition = {"kind": "CustomResourceDefinition", "spec": {
            "names": {"kind": "Certificate"}, "versions": [{"storage": True, "schema": schema}]}}
        with tempfile.TemporaryDirectory() as folder:
            (pathlib.Path(folder) / "a.yaml").write_text(yaml.safe_dump(definition))
            schemas = check_manifests.definitions(folder)
        made = {"apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": {"name": "n"}, "spec": {"a": 1}}
        self.assertEqual(check_manifests.faults([made], schemas=schemas, checks=[check_manifests.custom_resources]), [])
        made["spec"]["b"] = 1
        self.assertEqual(len(check_manifests.faults([made], schemas=schemas, checks=[check_manifests.custom_resources])), 1)


class Queries(unittest.TestCase):
    def test_whatever_a_worker_does_not_say_is_found(self):
        text = check_manifests.EXPORTED.read_text()
        for query, said in [
            ("lacuna_waiting", "exports lacuna_waiting"),
            ("sum(lacuna_refusals_total)", "without a rate"),
            ("histogram_quantile(0.5, lacuna_request_seconds_bucket)", "without a rate"),
            ("rate(lacuna_queue[5m])", "has no rate"),
            ('rate(lacuna_refusals_total{reason="x"}[5m])', "no label reason"),
            ('rate(lacuna_refusals_total{code="x"}[5m])', "no refusal is called x"),
        ]:
            with self.subTest(query=query):
                found = list(check_monitoring.faults_of(query, text))
                self.assertTrue(any(said in fault for fault in found), found)
        self.assertEqual(list(check_monitoring.faults_of('rate(lacuna_refusals_total{code!="token"}[5m]) + lacuna_queue', text)), [])


if __name__ == "__main__":
    unittest.main()
