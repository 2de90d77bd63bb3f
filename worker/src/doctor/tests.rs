//! Machines that are not there: folders of their files, and their variables.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use lacuna_channel::identity::Identity;
use rcgen::{CertificateParams, KeyPair, date_time_ymd};

use super::*;

/// A folder that stands for a system.
struct System {
    root: tempfile::TempDir,
    variables: Vec<(&'static str, &'static str)>,
}

impl System {
    fn new(files: &[(&str, &str)], variables: &[(&'static str, &'static str)]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        let variables = variables.to_vec();
        Self { root, variables }
    }

    fn machine(&self) -> Machine {
        let variables = self.variables.iter();
        let owned = variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Machine::new(self.root.path(), owned.collect())
    }

    /// What is found of Vulkan and of NVIDIA for a worker that computes on `device`.
    fn found(&self, device: DeviceChoice) -> Vec<Finding> {
        let machine = self.machine();
        let asked = Asked {
            device,
            ..Asked::default()
        };
        let mut found = vulkan::examine(&machine, nvidia::is_there(&machine));
        found.extend(nvidia::examine(&asked, &machine));
        found
    }
}

/// The one finding of `what`.
#[track_caller]
fn of<'a>(found: &'a [Finding], what: &str) -> &'a Finding {
    let mut all = found.iter().filter(|finding| finding.what.contains(what));
    let one = all.next();
    assert!(all.next().is_none(), "{what} twice: {found:?}");
    one.unwrap_or_else(|| panic!("no {what}: {found:?}"))
}

const ICD: &str = r#"{"file_format_version": "1.0.1", "ICD": {"library_path": "libGLX_nvidia.so.0", "api_version": "1.4.312"}}"#;
const NVIDIA_ICD: &str = "etc/vulkan/icd.d/nvidia_icd.json";

/// What a container of a GPU has that was started as it should be.
const WHOLE: [(&str, &str); 7] = [
    ("dev/nvidia0", ""),
    ("dev/nvidiactl", ""),
    ("usr/lib/x86_64-linux-gnu/libvulkan.so.1", ""),
    ("usr/lib/x86_64-linux-gnu/libGLX_nvidia.so.0", ""),
    ("usr/lib/x86_64-linux-gnu/libEGL.so.1", ""),
    ("usr/lib/x86_64-linux-gnu/libXext.so.6", ""),
    ("usr/lib/x86_64-linux-gnu/libcuda.so.1", ""),
];

const ALL: (&str, &str) = ("NVIDIA_DRIVER_CAPABILITIES", "graphics,compute,utility");

#[test]
fn a_container_that_has_all_is_said_to() {
    let files = [&WHOLE[..], &[(NVIDIA_ICD, ICD)]].concat();
    for all in [ALL, ("NVIDIA_DRIVER_CAPABILITIES", "all")] {
        let found = System::new(&files, &[all]).found(DeviceChoice::Auto);
        for finding in &found {
            assert_eq!(finding.state, State::Ok, "{finding}");
        }
        assert_eq!(of(&found, "NVIDIA's GPUs").said, "/dev/nvidia0");
        let driver = of(&found, "nvidia_icd.json");
        assert!(driver.said.ends_with("/libGLX_nvidia.so.0"), "{driver}");
    }
}

#[test]
fn a_container_without_graphics_is_told_how_to_be_started() {
    let mend = "-e NVIDIA_DRIVER_CAPABILITIES=graphics,compute,utility";
    let given = [("NVIDIA_DRIVER_CAPABILITIES", "compute,utility")];
    let system = System::new(&WHOLE, &given);
    let found = system.found(DeviceChoice::Auto);
    let variable = of(&found, "NVIDIA_DRIVER_CAPABILITIES");
    assert_eq!(variable.state, State::Broken);
    assert!(variable.said.contains("lacks graphics;"), "{variable}");
    let drivers = of(&found, "Vulkan drivers");
    assert_eq!(drivers.state, State::Missing);
    for finding in [variable, drivers] {
        assert!(finding.said.contains(mend), "{finding}");
        // What is written for people names what the code looks at.
        assert!(finding.said.contains(nvidia::VARIABLE), "{finding}");
    }
    // CUDA has all that it takes.
    let found = system.found(DeviceChoice::Cuda);
    assert_eq!(of(&found, nvidia::VARIABLE).state, State::Ok);

    // Not set at all, which matters in a container alone.
    let found = System::new(&WHOLE, &[("container", "podman")]).found(DeviceChoice::Auto);
    assert_eq!(of(&found, nvidia::VARIABLE).state, State::Missing);
    let found = System::new(&WHOLE, &[]).found(DeviceChoice::Auto);
    assert!(found.iter().all(|finding| finding.what != nvidia::VARIABLE));
}

#[test]
fn what_a_machine_lacks_is_named_with_its_package() {
    let found = System::new(&[], &[]).found(DeviceChoice::Auto);
    for (what, mend) in [
        ("Vulkan loader", "apt-get install libvulkan1"),
        ("Vulkan drivers", "mesa-vulkan-drivers"),
        ("NVIDIA's GPUs", "--gpus all"),
    ] {
        let finding = of(&found, what);
        assert_eq!(finding.state, State::Missing, "{finding}");
        assert!(finding.said.contains(mend), "{finding}");
        assert!(!finding.stops, "{finding}");
    }
    let found = System::new(&[("dev/nvidia1", "")], &[]).found(DeviceChoice::Auto);
    for (library, mend) in [
        ("libEGL.so.1", "libegl1 libxext6"),
        ("libXext.so.6", "libegl1 libxext6"),
        ("libcuda.so.1", "NVIDIA's driver"),
    ] {
        let of_it = |finding: &&Finding| finding.said.contains(library);
        let finding = found.iter().find(of_it).unwrap();
        assert_eq!(finding.state, State::Missing, "{finding}");
        assert!(finding.said.contains(mend), "{finding}");
    }
}

#[test]
fn a_driver_without_its_library_is_broken() {
    let path = "usr/share/vulkan/icd.d/radeon_icd.x86_64.json";
    let named = |library: &str| format!(r#"{{"ICD": {{"library_path": "{library}"}}}}"#);
    let state = |text: &str, files: &[(&str, &str)], variables: &[(&'static str, &'static str)]| {
        let files = [files, &[(path, text)]].concat();
        let found = System::new(&files, variables).found(DeviceChoice::Auto);
        of(&found, "Vulkan driver /").clone()
    };
    let there = [("opt/amd/libvulkan_radeon.so", "")];
    for (text, files, wanted) in [
        (named("libvulkan_radeon.so"), &[][..], State::Broken),
        (named("/opt/amd/libvulkan_radeon.so"), &[], State::Broken),
        (named("/opt/amd/libvulkan_radeon.so"), &there, State::Ok),
        (
            named("../../../../opt/amd/libvulkan_radeon.so"),
            &there,
            State::Ok,
        ),
        ("no JSON".into(), &there, State::Broken),
        (r#"{"ICD": {}}"#.into(), &there, State::Broken),
    ] {
        let finding = state(&text, files, &[]);
        assert_eq!(finding.state, wanted, "{text}: {finding}");
    }
    // The loader's cache and a variable name folders, too.
    let named = named("libvulkan_radeon.so");
    let cache = [
        there[0],
        (
            "etc/ld.so.cache",
            "glibc-ld.so.cache1.1\0x\0libvulkan_radeon.so\0/opt/amd/libvulkan_radeon.so\0",
        ),
    ];
    assert_eq!(state(&named, &cache, &[]).state, State::Ok);
    let variable = [("LD_LIBRARY_PATH", "/nowhere:/opt/amd/")];
    assert_eq!(state(&named, &there, &variable).state, State::Ok);
    // A driver that a variable names is the only one, wherever it is not.
    let chosen = [("VK_ICD_FILENAMES", "/nowhere/chosen.json")];
    let finding = state(&named, &there, &chosen);
    assert_eq!(finding.state, State::Broken);
    assert!(
        finding
            .said
            .contains("unset VK_DRIVER_FILES or unset VK_ICD_FILENAMES"),
        "{finding}"
    );
}

fn chmod(path: &Path, mode: u32) {
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn an_identity_is_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("identity");
    let asked = Asked {
        identity: Some(dir.clone()),
        ..Asked::default()
    };
    let found = files::examine(&asked);
    assert_eq!(of(&found, "--identity").state, State::Missing);
    assert!(!dir.exists() && !of(&found, "--identity").stops);

    let identity = Identity::at(&dir, &["worker.example".into()]).unwrap();
    let found = files::examine(&asked);
    for what in ["key of", "tokens of", "TLS", "certificate"] {
        assert_eq!(of(&found, what).state, State::Ok, "{}", of(&found, what));
    }
    // Others may read the key.
    let key = identity.files.key;
    chmod(&key, 0o644);
    let found = files::examine(&asked);
    let finding = of(&found, "key of");
    assert_eq!(finding.state, State::Broken);
    let mend = format!("chmod 600 {}", key.display());
    assert!(finding.said.contains(&mend) && !finding.stops, "{finding}");
    chmod(&key, 0o600);

    // A certificate of the same key that was good until yesterday.
    let pair = KeyPair::from_pem(&std::fs::read_to_string(&key).unwrap()).unwrap();
    let mut params = CertificateParams::new(vec!["worker.example".to_owned()]).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let expired = params.self_signed(&pair).unwrap();
    let certificate = identity.files.certificate;
    std::fs::write(&certificate, expired.pem()).unwrap();
    let found = files::examine(&asked);
    let finding = of(&found, "certificate");
    assert!(finding.state == State::Broken && finding.stops, "{finding}");
    assert!(
        finding.said.contains("2021") && finding.said.contains("renew"),
        "{finding}"
    );

    // Of another key, and of none.
    let other = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
    for text in [&other.pem(), "nothing"] {
        std::fs::write(&certificate, text).unwrap();
        let found = files::examine(&asked);
        let finding = of(&found, "TLS");
        assert!(finding.state == State::Broken && finding.stops, "{finding}");
    }
    std::fs::write(&identity.tokens, "# nobody yet\n").unwrap();
    let found = files::examine(&asked);
    assert!(
        found.iter().any(|f| f.what == "tokens" && f.stops),
        "{found:?}"
    );
}

#[test]
fn folders_and_ports_are_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let of_store = |dir: &Path| {
        let asked = Asked {
            store: Some(dir.to_owned()),
            ..Asked::default()
        };
        of(&files::examine(&asked), "--store").clone()
    };
    let store = folder.path().join("store");
    assert_eq!(of_store(&store).state, State::Ok);
    std::fs::create_dir(&store).unwrap();
    let lock = std::fs::File::create(store.join("lock")).unwrap();
    assert_eq!(of_store(&store).state, State::Ok);
    lock.lock().unwrap();
    assert!(of_store(&store).said.contains("a worker that runs"));
    let names = std::fs::read_dir(&store).unwrap().count();
    assert_eq!(names, 1, "it leaves nothing behind");
    let finding = of_store(Path::new("/proc/store"));
    assert!(finding.state == State::Broken && finding.stops, "{finding}");

    let of_model = |dir: &Path| {
        let asked = Asked {
            model: Some(dir.to_owned()),
            ..Asked::default()
        };
        of(&files::examine(&asked), "--model").clone()
    };
    let unet = folder.path().join("unet");
    std::fs::create_dir(&unet).unwrap();
    assert!(of_model(folder.path()).said.contains("there is no U-Net"));
    std::fs::write(unet.join("config.json"), "{}").unwrap();
    assert!(of_model(folder.path()).said.contains("no .safetensors"));
    std::fs::write(unet.join("model.safetensors"), "").unwrap();
    assert_eq!(of_model(folder.path()).state, State::Ok);
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/goldens");
    let one_file = |config: bool| {
        let asked = Asked {
            model: Some(goldens.join("one-file/sd1.safetensors")),
            model_config: config.then(|| goldens.join("models/sd1")),
            ..Asked::default()
        };
        of(&files::examine(&asked), "--model").clone()
    };
    assert_eq!(one_file(true).state, State::Ok);
    let finding = one_file(false);
    assert!(
        finding.stops && finding.said.contains("norm_num_groups"),
        "{finding}"
    );

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let finding = port(&("--listen", address));
    assert!(
        finding.stops && finding.said.contains("somebody listens"),
        "{finding}"
    );
    drop(taken);
    assert_eq!(port(&("--listen", address)).state, State::Ok);
}

#[test]
fn a_worker_serves_where_nothing_stops_it() {
    let machine = System::new(&[], &[]).machine();
    let cpu = Asked {
        device: DeviceChoice::Cpu,
        ..Asked::default()
    };
    let report = examine(&cpu, &machine);
    assert!(report.serves && report.device == Some("cpu"), "{report}");
    assert!(
        report.to_string().ends_with("a worker can serve on cpu\n"),
        "{report}"
    );
    let halves = Asked {
        precision: Precision::F16,
        ..cpu.clone()
    };
    let report = examine(&halves, &machine);
    assert!(!report.serves, "{report}");
    assert!(
        report
            .to_string()
            .ends_with("a worker cannot serve: device cpu\n"),
        "{report}"
    );
    let refused = Asked {
        refused: Some("others reach it".into()),
        ..cpu
    };
    let report = examine(&refused, &machine);
    assert!(
        !report.serves && of(&report.findings, "flags").stops,
        "{report}"
    );
}
