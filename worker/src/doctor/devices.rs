//! What computes here: the CPU, and GPUs that open and pass the self-test.

use lacuna_kernels::simd::{self, Width};
use lacuna_model::device::{self, DeviceChoice};
use lacuna_model::{memory, selftest};

use super::{Asked, Finding};

/// Adds what is found, and says which device a worker would take.
pub(super) fn examine(
    asked: &Asked,
    has_nvidia: bool,
    findings: &mut Vec<Finding>,
) -> Option<&'static str> {
    findings.push(cpu());
    findings.push(room());
    if asked.wants(DeviceChoice::Wgpu) && DeviceChoice::Wgpu.is_built() {
        findings.extend(adapters());
    }
    let mut taken = None;
    for choice in DeviceChoice::EACH {
        if !asked.wants(choice) {
            continue;
        }
        let what = format!("device {choice}");
        let is_named = asked.device == choice;
        if !choice.is_built() {
            let of_use = choice == DeviceChoice::Wgpu || has_nvidia || is_named;
            if of_use {
                let said = format!("this build is without it; build with --features {choice}");
                let finding = Finding::missing(what, said);
                findings.push(if is_named {
                    finding.stopping()
                } else {
                    finding
                });
            }
            continue;
        }
        let opened = match device::open(choice, asked.allow_software) {
            Ok(opened) => opened,
            Err(error) => {
                let finding = Finding::broken(what, error.to_string());
                findings.push(if is_named {
                    finding.stopping()
                } else {
                    finding
                });
                continue;
            }
        };
        let first = taken.is_none();
        let finding = match selftest::run(&opened, asked.precision) {
            Ok(report) => {
                taken = taken.or(Some(opened.kind));
                Finding::ok(what, format!("{}: {report}", opened.adapter))
            }
            // What opens first is what a worker takes, and ends with if it computes wrong.
            Err(error) => {
                let finding = Finding::broken(what, format!("{}: {error}", opened.adapter));
                if first { finding.stopping() } else { finding }
            }
        };
        findings.push(finding);
    }
    taken
}

fn cpu() -> Finding {
    let kernels = match simd::width() {
        Width::Vnni => "AVX-512 with VNNI",
        Width::Avx512 => "AVX-512",
        Width::Avx2 => "AVX2",
        Width::Portable if cfg!(target_arch = "x86_64") => {
            "without AVX2, several times slower than with it"
        }
        Width::Portable => "those of the build's target",
    };
    Finding::ok("kernels of the CPU", kernels)
}

/// Cores and memory, as the control group limits them.
fn room() -> Finding {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let what = "cores and memory";
    match memory::in_all() {
        Some(bytes) => Finding::ok(what, format!("{cores} cores, {} MB", bytes / 1_000_000)),
        None => Finding::ok(
            what,
            format!("{cores} cores; the system does not say how much memory"),
        ),
    }
}

fn adapters() -> Vec<Finding> {
    let what = "adapter";
    let found = device::adapters();
    if found.is_empty() {
        let said = "wgpu finds no GPU; mend what is missing above, or compute on the CPU";
        return vec![Finding::missing(what, said)];
    }
    let described = found.iter().map(|adapter| {
        let emulated = match adapter.software {
            true => ", emulated in software",
            false => "",
        };
        let said = format!(
            "{} ({}, {}{emulated}): {} MB a buffer, {} MB a binding",
            adapter.name,
            adapter.backend,
            adapter.driver,
            adapter.largest_buffer / 1_000_000,
            adapter.largest_binding / 1_000_000,
        );
        Finding::ok(what, said)
    });
    described.collect()
}
