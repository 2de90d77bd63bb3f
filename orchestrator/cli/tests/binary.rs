//! The binary from outside: whatever is wrong, one line that says so, and no picture.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Map, Value, json};

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";

/// A copy of a tiny model, and a place for the picture beside it.
struct Workplace {
    folder: tempfile::TempDir,
}

/// Tensors by name: number type, sizes, bytes.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

impl Workplace {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2");
        copy_folder(&tiny, &folder.path().join("model"));
        std::fs::create_dir(folder.path().join("out")).unwrap();
        Self { folder }
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("model")
    }

    fn out(&self) -> PathBuf {
        self.folder.path().join("out")
    }

    /// Changes the tensors of a weight file.
    fn change_tensors(&self, file: &str, change: impl FnOnce(&mut Tensors)) {
        let path = self.model().join(file);
        let bytes = std::fs::read(&path).unwrap();
        let parsed = SafeTensors::deserialize(&bytes).unwrap();
        let mut tensors: Tensors = parsed
            .iter()
            .map(|(name, t)| {
                let raw = (t.dtype(), t.shape().to_vec(), t.data().to_vec());
                (name.to_owned(), raw)
            })
            .collect();
        change(&mut tensors);
        let views = tensors.iter().map(|(name, (dtype, shape, data))| {
            let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
            (name.as_str(), view)
        });
        std::fs::write(&path, safetensors::serialize(views, None).unwrap()).unwrap();
    }

    /// Changes a JSON file.
    fn change_json(&self, file: &str, change: impl FnOnce(&mut Map<String, Value>)) {
        let path = self.model().join(file);
        let mut map = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut map);
        std::fs::write(&path, Value::Object(map).to_string()).unwrap();
    }

    /// Runs `lacuna generate` on the model, with more arguments.
    fn generate<A: AsRef<OsStr>>(&self, more: &[A]) -> Output {
        self.command(more).output().unwrap()
    }

    /// `lacuna generate` on the model, with more arguments.
    fn command<A: AsRef<OsStr>>(&self, more: &[A]) -> Command {
        let mut arguments = vec![OsStr::new("generate").to_owned()];
        if !more.iter().any(|a| a.as_ref() == "--prompt") {
            arguments.push("a red circle".into());
        }
        for (flag, value) in [
            ("--model", self.model()),
            ("--out", self.out().join("pic.png")),
            ("--device", "cpu".into()),
            ("--steps", "2".into()),
            ("--workers", "2".into()),
        ] {
            // What is given replaces it: clap takes no flag twice, nor two kinds of workers.
            let given = |flag: &str| more.iter().any(|a| a.as_ref() == flag);
            let replaced = flag == "--workers" && given("--fleet");
            if !replaced && !given(flag) {
                arguments.extend([flag.into(), value.into_os_string()]);
            }
        }
        arguments.extend(more.iter().map(|a| a.as_ref().to_owned()));
        command(&arguments)
    }

    /// Runs it, and sees to it that it fails as it should: a status, one line that names `parts`,
    /// and nothing written.
    #[track_caller]
    fn fails<A: AsRef<OsStr>>(&self, more: &[A], parts: &[&str]) {
        self.fails_with(1, more, parts);
    }

    /// The same with an exit code: 2 is that of a command line that makes no sense.
    #[track_caller]
    fn fails_with<A: AsRef<OsStr>>(&self, code: i32, more: &[A], parts: &[&str]) {
        let output = self.generate(more);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{stderr}");
        // A TOML error draws where it is.
        let drawn = stderr.contains("TOML parse error") && stderr.contains("\n  |\n");
        assert!(drawn || stderr.lines().count() == 1, "{stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        let clauses: Vec<&str> = stderr.trim().split(": ").collect();
        let distinct: HashSet<&&str> = clauses.iter().collect();
        assert_eq!(distinct.len(), clauses.len(), "said twice: {stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        }
        assert_eq!(
            std::fs::read_dir(self.out()).unwrap().count(),
            0,
            "{stderr}"
        );
    }
}

impl Workplace {
    /// Runs it, and sees to it that the picture is made, with one line of warning that names `parts`.
    #[track_caller]
    fn passes_with(&self, parts: &[&str]) {
        let output = self.generate::<&str>(&[]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("WARN"), "{stderr}");
        for part in parts {
            assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        }
        assert!(self.out().join("pic.png").is_file());
    }
}

/// Runs the binary with nothing of ours in its environment.
fn lacuna<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    command(arguments).output().unwrap()
}

/// The binary with nothing of ours in its environment.
fn command<A: AsRef<OsStr>>(arguments: &[A]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lacuna"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LACUNA_") || name == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command.args(arguments);
    command
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn a_picture_is_written_and_nothing_is_said_on_stderr() {
    let place = Workplace::new();
    for scheme in ["resident", "ppidm"] {
        let output = place.generate(&["--scheme", scheme]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{stderr}");
        assert_eq!(stderr, "");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains("pic.png"), "{stdout}");
        let png = std::fs::read(place.out().join("pic.png")).unwrap();
        assert_eq!(&png[1..4], b"PNG");
        assert_eq!(std::fs::read_dir(place.out()).unwrap().count(), 1);
    }
}

#[test]
fn no_log_spells_the_prompt_and_none_is_coloured_in_a_pipe() {
    let place = Workplace::new();
    let prompt = [
        "--prompt",
        "zanzibarquux",
        "--negative-prompt",
        "-wolpertinger",
    ];
    let mut command = place.command(&prompt);
    let output = command.env("RUST_LOG", "trace").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert!(stderr.contains("DEBUG lacuna_orchestrator"), "{stderr}");
    for secret in ["zanzi", "quux", "wolper", "\u{1b}["] {
        assert!(!stderr.contains(secret), "{secret}: {stderr}");
    }
}

#[test]
fn a_file_carries_its_prompt_unless_told_otherwise() {
    let place = Workplace::new();
    let picture = place.out().join("pic.png");
    let said = |output: Output| String::from_utf8(output.stdout).unwrap();
    let has = |text: &str| {
        let bytes = std::fs::read(&picture).unwrap();
        bytes.windows(text.len()).any(|at| at == text.as_bytes())
    };
    let stdout = said(place.generate(&["--seed", "-1"]));
    assert!(stdout.contains("--no-metadata"), "{stdout}");
    assert!(stdout.contains("seed 18446744073709551615"), "{stdout}");
    assert!(has("a red circle") && has("18446744073709551615"));
    let stdout = said(place.generate(&["--no-metadata"]));
    assert!(!stdout.contains("--no-metadata"), "{stdout}");
    assert!(!has("a red circle") && !has("seed") && !has("iTXt"));
}

#[test]
fn a_seed_is_drawn_and_told_where_none_is_given() {
    let place = Workplace::new();
    let report = place.folder.path().join("report.json");
    let made = |more: &[&str]| {
        let report = ["--report", report.to_str().unwrap()];
        let output = place.generate(&[more, &report].concat());
        assert!(output.status.success());
        let picture = std::fs::read(place.out().join("pic.png")).unwrap();
        let text = std::fs::read(report[1]).unwrap();
        let report: Value = serde_json::from_slice(&text).unwrap();
        let stdout = String::from_utf8(output.stdout).unwrap();
        let seed = report["seed"].to_string();
        assert!(stdout.contains(&format!("seed {seed})")), "{stdout}");
        (picture, seed)
    };
    let (first, seed) = made(&[]);
    let (second, other) = made(&[]);
    assert!(seed != other && first != second);
    assert_eq!(made(&["--seed", &seed]).0, first);
}

#[test]
fn words_that_the_demo_model_does_not_know_are_told() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets/demo-model");
    let out = tempfile::tempdir().unwrap();
    let said = |prompt: &str| {
        let mut run = command(&["generate", prompt, "--model", demo, "--steps", "1"]);
        run.args(["--scheme", "local", "--device", "cpu", "--out"]);
        let output = run.arg(out.path().join("pic.png")).output().unwrap();
        assert!(output.status.success());
        String::from_utf8(output.stdout).unwrap()
    };
    let odd = said("a photo of a Red cat, a cat's tail");
    assert!(
        odd.contains("does not know: photo, cat, cat's, tail;"),
        "{odd}"
    );
    let plain = said("A large red circle above a small blue square, on a yellow background.");
    assert!(!plain.contains("does not know"), "{plain}");
}

#[test]
fn sizes_that_no_memory_holds_are_refused_in_words() {
    let place = Workplace::new();
    for (arguments, part) in [
        (
            &["--height", "64", "--width", "18446744073709551608"][..],
            "--width",
        ),
        (&["--height", "64", "--width", "4294967296"], "--width"),
        (&["--size", "4294967296x4294967296"], "--height"),
        (&["--size", "16384x16384"], "--size"),
        (&["--count", "0"], "--count 0"),
        (&["--count", "18446744073709551615"], "--count"),
        (&["--steps", "18446744073709551615"], "steps"),
    ] {
        place.fails(arguments, &[part]);
    }
    for arguments in [
        &["cost", "--batch", "18446744073709551615"][..],
        &[
            "cost",
            "--size",
            "18446744073709551608x18446744073709551608",
        ],
        &["plan", "--device", "cpu", "--size", "4294967296x4294967296"],
        &["bench", "--rows", "18446744073709551615"],
        &["bench", "--calls", "18446744073709551615"],
        &["bench", "--turns", "18446744073709551615"],
        &["audit", "--prompts", "18446744073709551615"],
    ] {
        let output = lacuna(arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.starts_with("error: --"), "{arguments:?}: {stderr}");
    }
}

#[test]
fn flags_without_effect_are_refused() {
    let place = Workplace::new();
    for (code, arguments, parts) in [
        (2, &["--groupnorm", "local"][..], ["--groupnorm", "ppidm"]),
        (
            2,
            &["--scheme", "ppidm", "--wire", "f16"],
            ["--wire", "resident"],
        ),
        (
            1,
            &["--policy", "privte"],
            ["privte", "private, fast and paper"],
        ),
        (1, &["--scheme", "local"], ["--workers", "has no workers"]),
    ] {
        place.fails_with(code, arguments, &parts);
    }
}

#[test]
fn plans_and_costs_need_no_repository() {
    let elsewhere = tempfile::tempdir().unwrap();
    for arguments in [
        &["cost"][..],
        &["cost", "--model", "sdxl"],
        &["plan", "--device", "cpu"],
        &[
            "plan",
            "--device",
            "cpu",
            "--policy",
            "fast",
            "--workers",
            "2",
        ],
    ] {
        let mut command = command(arguments);
        let output = command.current_dir(elsewhere.path()).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {stderr}");
    }
}

#[test]
fn variables_stand_for_flags() {
    let place = Workplace::new();
    let mut command = place.command::<&str>(&[]);
    let command = command
        .env("LACUNA_NO_METADATA", "1")
        .env("LACUNA_COUNT", "2");
    assert!(command.output().unwrap().status.success());
    assert_eq!(std::fs::read_dir(place.out()).unwrap().count(), 2);
    let output = command.env("LACUNA_COUNT", "0").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("--count 0"));
}

#[test]
fn help_lists_the_commands() {
    let output = lacuna(&["--help"]);
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).unwrap();
    for command in ["generate", "metrics", "workers", "bench"] {
        let listed = stdout.lines().any(|l| l.trim().starts_with(command));
        assert!(listed, "{command} is not in: {stdout}");
        let output = lacuna(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
    }
    let output = lacuna(&["--version"]);
    let version = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        version.trim(),
        concat!("lacuna ", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn no_or_unknown_arguments_are_refused() {
    for arguments in [
        &[][..],
        &["paint"],
        &["generate"],
        &["generate", "a", "--stps", "3"],
    ] {
        let output = lacuna(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn a_missing_model_is_named() {
    let place = Workplace::new();
    place.fails(&["--model", "/nowhere/at/all"], &["/nowhere/at/all"]);
    let empty = place.folder.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let empty = empty.to_str().unwrap();
    place.fails(&["--model", empty], &[empty, "model_index.json"]);
    for part in ["unet", "vae", "text_encoder", "tokenizer", "scheduler"] {
        let place = Workplace::new();
        std::fs::remove_dir_all(place.model().join(part)).unwrap();
        place.fails::<&str>(&[], &[&format!("part {part} is missing")]);
    }
}

#[test]
fn truncated_weights_are_named() {
    for file in [
        UNET,
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
    ] {
        for share in [0, 1, 50, 99] {
            let place = Workplace::new();
            let path = place.model().join(file);
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() * share / 100]).unwrap();
            place.fails::<&str>(&[], &[file]);
        }
    }
}

#[test]
fn a_tensor_of_another_type_name_or_value_is_named() {
    let name = "mid_block.resnets.0.conv1.weight";
    let place = Workplace::new();
    place.change_tensors(UNET, |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        tensor.0 = Dtype::I32;
    });
    place.fails::<&str>(&[], &[name, "I32"]);

    let place = Workplace::new();
    place.change_tensors(UNET, |tensors| {
        let tensor = tensors.remove(name).unwrap();
        tensors.insert("mid_block.resnets.0.conv7.weight".into(), tensor);
    });
    place.fails::<&str>(&[], &[name, "missing"]);

    let place = Workplace::new();
    place.change_tensors(UNET, |tensors| {
        let tensor = tensors[name].clone();
        tensors.insert("mid_block.resnets.0.conv7.weight".into(), tensor);
    });
    place.passes_with(&["unused tensors", "mid_block.resnets.0.conv7.weight"]);

    let place = Workplace::new();
    place.change_tensors(UNET, |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        tensor.2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    place.fails::<&str>(&[], &[name, "not finite"]);
}

#[test]
fn a_config_that_cannot_be_honoured_is_named() {
    for (file, key, value) in [
        ("unet/config.json", "act_fn", json!("mish")),
        ("vae/config.json", "out_channels", json!(5)),
        ("text_encoder/config.json", "hidden_act", json!("relu6")),
        (
            "scheduler/scheduler_config.json",
            "prediction_type",
            json!("sample7"),
        ),
        ("model_index.json", "_class_name", json!("FluxPipeline")),
    ] {
        let place = Workplace::new();
        place.change_json(file, |map| {
            map.insert(key.into(), value.clone());
        });
        let told = if key == "_class_name" {
            "FluxPipeline"
        } else {
            key
        };
        place.fails::<&str>(&[], &[file, told]);
    }
    let place = Workplace::new();
    std::fs::write(place.model().join("unet/config.json"), "{\"act_fn\":\n").unwrap();
    place.fails::<&str>(&[], &["unet/config.json"]);
}

#[test]
fn a_key_that_nobody_has_is_a_warning() {
    for (file, key, value) in [
        ("unet/config.json", "decay", json!(0.9999)),
        ("vae/config.json", "extra_mixing", json!([1])),
        ("text_encoder/config.json", "extra_mixing", json!({})),
        ("tokenizer/tokenizer_config.json", "extra_mixing", json!(2)),
        ("scheduler/scheduler_config.json", "extra_mixing", json!(2)),
        (
            "model_index.json",
            "controlnet",
            json!(["diffusers", "ControlNetModel"]),
        ),
    ] {
        let place = Workplace::new();
        place.change_json(file, |map| {
            map.insert(key.into(), value.clone());
        });
        place.passes_with(&["ignored", key]);
    }
}

#[test]
fn a_place_that_cannot_be_written_is_named_before_the_work() {
    let place = Workplace::new();
    let missing = place.out().join("no/such/folder/pic.png");
    let missing = missing.to_str().unwrap();
    for flag in ["--out", "--save-latents", "--report"] {
        place.fails(&[flag, missing], &["cannot write", missing]);
    }
    let folder = place.out();
    place.fails(&["--out", folder.to_str().unwrap()], &["is a directory"]);
    // Not even a model is looked for.
    let arguments = ["--out", missing, "--model", "/nowhere/at/all"];
    place.fails(&arguments, &["cannot write"]);
}

#[test]
fn a_bad_fleet_file_is_named() {
    let place = Workplace::new();
    let path = place.folder.path().join("fleet.toml");
    let file = path.to_str().unwrap();
    place.fails(&["--fleet", file], &["fleet file", file]);
    for (text, part) in [
        ("", "0 [[worker]]"),
        ("[[worker\n", "fleet.toml"),
        ("[[worker]]\nurl = \"http://a/\"\n", "provider"),
        (
            "[[worker]]\nurl = \"no url\"\nprovider = \"p\"\n",
            "worker 1",
        ),
        ("[[worker]]\nurl = 7\nprovider = \"p\"\n", "url"),
        (
            "[[worker]]\nurl = \"ftp://a/\"\nprovider = \"p\"\n",
            "ftp://a/",
        ),
        (
            "[[wroker]]\nurl = \"http://a/\"\nprovider = \"p\"\n",
            "wroker",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        place.fails(&["--fleet", file], &[file, part]);
    }
    std::fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    place.fails(&["--fleet", file], &[file]);
    // The older name.
    place.fails(&["--workers", file], &["fleet file", file]);
}

#[test]
fn bad_latents_are_named() {
    let place = Workplace::new();
    let path = place.folder.path().join("noise.safetensors");
    let file = path.to_str().unwrap();
    place.fails(&["--latents", file], &[file]);
    std::fs::write(&path, b"no latents").unwrap();
    place.fails(&["--latents", file], &[file, "damaged"]);
    let data = vec![0; 4 * 4];
    let view = TensorView::new(Dtype::F32, vec![4], &data).unwrap();
    std::fs::write(&path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
    place.fails(&["--latents", file], &[file, "[4]"]);
}
