//! A GPU of NVIDIA's, and what its container toolkit puts into a container.

use lacuna_model::device::DeviceChoice;

use super::machine::Machine;
use super::{Asked, Finding};

/// What the toolkit reads.
pub(super) const VARIABLE: &str = "NVIDIA_DRIVER_CAPABILITIES";

/// How a container gets all of the driver.
pub(super) const ALLOW: &str = "start the container with `-e NVIDIA_DRIVER_CAPABILITIES=graphics,compute,utility` (a variable of the container: set \
     in one that runs it changes nothing)";

/// Whether a GPU of NVIDIA's is given to this system.
pub(super) fn is_there(machine: &Machine) -> bool {
    !nodes(machine).is_empty()
}

/// The device nodes of its GPUs.
fn nodes(machine: &Machine) -> Vec<String> {
    let names = machine.names("dev").into_iter();
    let numbered = |name: &String| {
        let number = name.strip_prefix("nvidia").unwrap_or_default();
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    };
    let nodes = names.filter(numbered);
    nodes.map(|name| format!("/dev/{name}")).collect()
}

pub(super) fn examine(asked: &Asked, machine: &Machine) -> Vec<Finding> {
    let (what, nodes) = ("NVIDIA's GPUs", nodes(machine));
    let capabilities = machine.variable(VARIABLE);
    if nodes.is_empty() {
        let said = "no /dev/nvidia0; where there is one, load its driver, or give it to the container: `docker run --gpus all`, \
                    or limits of nvidia.com/gpu in Kubernetes";
        let mut findings = vec![Finding::missing(what, said)];
        findings.extend(capabilities.map(|given| allowed(asked, given)));
        return findings;
    }
    let mut findings = vec![Finding::ok(what, nodes.join(", "))];
    match capabilities {
        Some(given) => findings.push(allowed(asked, given)),
        // The toolkit then gives compute and utility.
        None if machine.is_container() && asked.wants(DeviceChoice::Wgpu) => {
            let said = format!("not set, which leaves Vulkan out; {ALLOW}");
            findings.push(Finding::missing(VARIABLE, said));
        }
        None => {}
    }
    let driver = "libcuda.so.1";
    findings.push(match machine.library(driver) {
        Some(path) => Finding::ok("CUDA driver", path),
        None => Finding::missing(
            "CUDA driver",
            format!("there is no {driver}; install NVIDIA's driver; in a container, {ALLOW}"),
        ),
    });
    if asked.wants(DeviceChoice::Wgpu) {
        for (library, package) in [("libEGL.so.1", "libegl1"), ("libXext.so.6", "libxext6")] {
            let what = "library of NVIDIA's Vulkan driver";
            findings.push(match machine.library(library) {
                Some(path) => Finding::ok(what, path),
                None => Finding::missing(
                    what,
                    format!("there is no {library}; apt-get install libvulkan1 libegl1 libxext6 ({package} has it)"),
                ),
            });
        }
    }
    findings
}

/// Whether what the toolkit was told to put into the container is enough.
fn allowed(asked: &Asked, given: &str) -> Finding {
    let has = |wanted: &str| {
        given
            .split(',')
            .any(|g| ["all", wanted].contains(&g.trim()))
    };
    let wanted = match asked.device {
        DeviceChoice::Cuda => &["compute"][..],
        _ => &["graphics", "compute"],
    };
    let lacks: Vec<&str> = wanted.iter().copied().filter(|w| !has(w)).collect();
    match lacks.is_empty() {
        true => Finding::ok(VARIABLE, given),
        false => Finding::broken(
            VARIABLE,
            format!("{given} lacks {}; {ALLOW}", lacks.join(" and ")),
        ),
    }
}
