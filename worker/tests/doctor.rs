//! `lacuna-worker doctor` from outside, on this machine.

use std::process::{Command, Output};

use lacuna_model::device::DeviceChoice;
use serde_json::Value;

fn doctor(arguments: &[&str]) -> Output {
    let mut worker = Command::new(env!("CARGO_BIN_EXE_lacuna-worker"));
    worker.arg("doctor").args(["--listen", "127.0.0.1:0"]);
    worker.args(arguments).output().unwrap()
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn this_machine_can_serve_on_its_cpu() {
    let output = doctor(&["--device", "cpu"]);
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    for line in [
        "ok: kernels of the CPU: ",
        "ok: cores and memory: ",
        "ok: device cpu: ",
        "ok: --listen 127.0.0.1:0: free",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    assert!(said.ends_with("a worker can serve on cpu\n"), "{said}");
    // What the flags ask for alone is looked at.
    assert!(!said.contains("Vulkan"), "{said}");
}

#[test]
fn a_device_that_is_not_there_is_a_reason_not_to_serve() {
    for device in [DeviceChoice::Cuda, DeviceChoice::Wgpu] {
        let output = doctor(&["--device", &device.to_string(), "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let serves = report["serves"].as_bool().unwrap();
        assert_eq!(output.status.code(), Some(i32::from(!serves)), "{report}");
        let all = report["findings"].as_array().unwrap();
        let what = format!("device {device}");
        let finding = all.iter().find(|f| f["what"] == *what).unwrap();
        assert_eq!(finding["stops"], !serves, "{report}");
        if !device.is_built() {
            assert_eq!(finding["state"], "missing");
            let said = finding["said"].as_str().unwrap();
            assert!(said.contains(&format!("--features {device}")), "{said}");
        }
    }
}

#[test]
fn flags_that_a_worker_would_refuse_are_refused() {
    let output = doctor(&["--device", "cpu", "--listen", "0.0.0.0:0"]);
    assert_eq!(output.status.code(), Some(2), "given twice");
    let mut worker = Command::new(env!("CARGO_BIN_EXE_lacuna-worker"));
    worker.args(["doctor", "--device", "cpu", "--listen", "0.0.0.0:0"]);
    let output = worker.output().unwrap();
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("broken: flags: --listen 0.0.0.0:0"), "{said}");
    let output = doctor(&["--device", "cpu", "--model", "nowhere"]);
    let said = printed(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(
        said.contains("broken: --model: there is no U-Net in nowhere"),
        "{said}"
    );
}
