//! The Vulkan loader, and the drivers that it finds.

use serde::Deserialize;

use super::machine::Machine;
use super::{Finding, nvidia};

const LOADER: &str = "libvulkan.so.1";

/// Where drivers are announced (LoaderDriverInterface.md of the Vulkan loader).
const FOLDERS: [&str; 4] = [
    "usr/share/vulkan/icd.d",
    "etc/vulkan/icd.d",
    "usr/local/share/vulkan/icd.d",
    "usr/local/etc/vulkan/icd.d",
];

/// Variables that name drivers in place of those folders, newest first.
const NAMED: [&str; 2] = ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"];

/// A driver as it is announced.
#[derive(Deserialize)]
struct Manifest {
    #[serde(rename = "ICD")]
    driver: Driver,
}

#[derive(Deserialize)]
struct Driver {
    library_path: String,
}

pub(super) fn examine(machine: &Machine, has_nvidia: bool) -> Vec<Finding> {
    let what = "Vulkan loader";
    let loader = match machine.library(LOADER) {
        Some(path) => Finding::ok(what, path),
        None => Finding::missing(
            what,
            format!("there is no {LOADER}; apt-get install libvulkan1"),
        ),
    };
    let announced = announced(machine);
    let mut findings = vec![loader];
    findings.extend(announced.iter().map(|path| driver(machine, path)));
    if announced.is_empty() {
        let mend = match has_nvidia {
            true => format!(
                "a GPU of NVIDIA's is here without its Vulkan driver; {}",
                nvidia::ALLOW
            ),
            false => "install that of the GPU: NVIDIA's driver brings its own (a container gets it from the host), and \
                      mesa-vulkan-drivers has those for AMD and Intel"
                .into(),
        };
        let said = format!(
            "none in {}; {mend}",
            FOLDERS.map(|f| format!("/{f}")).join(", ")
        );
        findings.push(Finding::missing("Vulkan drivers", said));
    } else if has_nvidia && !announced.iter().any(|path| path.contains("nvidia")) {
        findings.push(Finding::missing(
            "NVIDIA's Vulkan driver",
            format!("none of these is NVIDIA's; {}", nvidia::ALLOW),
        ));
    }
    findings
}

/// Files that announce drivers.
fn announced(machine: &Machine) -> Vec<String> {
    let named = NAMED.iter().find_map(|name| machine.variable(name));
    if let Some(named) = named {
        return named.split(':').map(str::to_owned).collect();
    }
    let of = |folder: &str| {
        let names = machine.names(folder).into_iter();
        let json = names.filter(|name| name.ends_with(".json"));
        let paths = json.map(|name| format!("/{folder}/{name}"));
        paths.collect::<Vec<_>>()
    };
    FOLDERS.into_iter().flat_map(of).collect()
}

fn driver(machine: &Machine, path: &str) -> Finding {
    let what = format!("Vulkan driver {path}");
    let manifest = machine.read(path).and_then(|bytes| {
        serde_json::from_slice::<Manifest>(&bytes).map_err(|error| error.to_string())
    });
    let library = match manifest {
        Ok(manifest) => manifest.driver.library_path,
        Err(reason) => {
            let named = NAMED.map(|name| format!("unset {name}")).join(" or ");
            return Finding::broken(
                what,
                format!("{reason}; install that driver again, or {named} where that names it"),
            );
        }
    };
    let found = match library.split_once('/') {
        None => machine.library(&library),
        // Relative to the manifest, unless it begins at the root.
        Some(_) => {
            let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
            let whole = match library.starts_with('/') {
                true => library.clone(),
                false => format!("{folder}/{library}"),
            };
            machine.has(&whole).then_some(whole)
        }
    };
    match found {
        Some(found) => Finding::ok(what, found),
        None if path.contains("nvidia") => Finding::broken(
            what,
            format!("its library {library} is not there; {}", nvidia::ALLOW),
        ),
        None => Finding::broken(
            what,
            format!("its library {library} is not there; install that driver again"),
        ),
    }
}
