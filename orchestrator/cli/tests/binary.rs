//! The binary from outside: what it says, what it takes, and that whatever is wrong is one line that says so.

mod common;
#[path = "common/workplace.rs"]
mod workplace;

use std::ffi::OsStr;
use std::process::{Command, Output};

use common::lacuna;
use serde_json::Value;
use workplace::Workplace;

/// The binary with arguments.
fn command<A: AsRef<OsStr>>(arguments: &[A]) -> Command {
    let mut command = lacuna();
    command.args(arguments);
    command
}

/// Runs it.
fn run<A: AsRef<OsStr>>(arguments: &[A]) -> Output {
    command(arguments).output().unwrap()
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
fn a_scheme_that_stands_for_others_says_which_it_is() {
    let place = Workplace::new();
    let output = place.generate(&["--scheme", "auto"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{stdout}");
    let line = "--scheme auto: without a policy nothing is planned, so it is local, at home";
    assert!(stdout.contains(line), "{stdout}");
    let output = place.generate(&["--scheme", "auto", "--policy", "private"]);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("auto: without --fleet"), "{stdout}");
    let output = place.generate(&["--scheme", "resident"]);
    assert!(
        !String::from_utf8(output.stdout)
            .unwrap()
            .contains("--scheme")
    );
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
        let output = run(arguments);
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
            ["privte", "private, nothing, fast and paper"],
        ),
        (1, &["--scheme", "local"], ["--workers", "has no workers"]),
    ] {
        place.fails_with(code, arguments, &parts);
    }
}

#[test]
fn a_pictures_cost_is_that_of_its_calls() {
    let counted = |words: &str| -> serde_json::Value {
        let words: Vec<&str> = words.split_whitespace().collect();
        let arguments = [&["cost", "--scheme", "resident", "--json"], &words[..]].concat();
        let output = command(&arguments).output().unwrap();
        assert!(output.status.success(), "{words:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let number = |value: &serde_json::Value, key: &str| value[key].as_u64().unwrap();
    assert!(counted("--wire f16").get("picture").is_none());
    for wire in ["f16", "delta4"] {
        let call = counted(&format!("--wire {wire} --calls 4"));
        let one = counted(&format!("--wire {wire} --calls 1"));
        let (picture, first) = (&call["picture"], &one["picture"]);
        for key in ["bytes_up", "bytes_down", "round_trips"] {
            let later = number(&call, key);
            assert_eq!(
                number(picture, key),
                number(first, key) + 3 * later,
                "{wire} {key}"
            );
        }
        // Of changes the first is whole.
        let larger = number(first, "bytes_up") > number(&call, "bytes_up");
        assert!(larger || wire == "f16");
        let seconds = |value: &serde_json::Value| value["seconds"].as_f64().unwrap();
        let sum = seconds(first) + 3.0 * seconds(&call);
        assert!((seconds(picture) - sum).abs() < 1e-9);
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
fn a_plan_is_told_of_adapters() {
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/../../assets");
    let [model, adapter] =
        ["demo-model", "demo-lcm-lora.safetensors"].map(|name| format!("{assets}/{name}"));
    let plan = |model: &str, rest: &[&str]| {
        let arguments = ["plan", "--device", "cpu", "--model", model, "--json"];
        run(&[&arguments[..], rest].concat())
    };
    let with = ["--lora", &adapter, "--policy"];
    let ways = |rest: &[&str]| {
        let output = plan(&model, rest);
        let json: Value = serde_json::from_slice(&output.stdout).unwrap();
        let ways = json["ways"].as_array().unwrap().clone();
        let allowed = |name: &str| {
            let mut named = ways.iter().filter(|way| {
                let label = way["name"].as_str().unwrap();
                label.starts_with(name)
            });
            named.any(|way| way["refused"].is_null())
        };
        let bytes = json["adapter_bytes"].as_u64();
        (bytes, ["local", "resident", "blind"].map(allowed))
    };
    let (bytes, allowed) = ways(&[&with[..], &["private", "--workers", "4"]].concat());
    assert!((1_000_000..2_000_000).contains(&bytes.unwrap()));
    assert_eq!(allowed[..2], [true, true]);
    // Nobody sees them.
    let (_, allowed) = ways(&[&with[..], &["nothing", "--workers", "2"]].concat());
    assert_eq!(allowed, [true, false, true]);
    let (bytes, _) = ways(&["--policy", "private", "--workers", "4"]);
    assert_eq!(bytes, None);
    // Of another model.
    let output = plan("sd15", &["--lora", &adapter]);
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && stderr.contains("adapter"),
        "{stderr}"
    );
}

#[test]
fn a_plan_is_told_of_a_models_configs() {
    let goldens = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/goldens");
    let file = format!("{goldens}/one-file/sd1.safetensors");
    let folder = format!("{goldens}/models/sd1");
    let told = |command: &str, rest: &[&str]| {
        let first = [command, "--json", "--model"];
        let output = run(&[&first[..], rest].concat());
        let stderr = String::from_utf8(output.stderr).unwrap();
        (serde_json::from_slice::<Value>(&output.stdout).ok(), stderr)
    };
    // Of the first way, which is home; of workers others are the fastest at each time.
    let counted = |command: &str, rest: &[&str]| {
        let (json, stderr) = told(command, rest);
        let json = json.expect(&stderr);
        let counted = match command {
            "plan" => json["ways"][0]["cost"]["memory"].clone(),
            _ => json["user_gflop"].clone(),
        };
        assert!(counted.is_number(), "{json}");
        counted
    };
    for command in ["plan", "cost"] {
        let one = counted(command, &[&file, "--model-config", &folder]);
        assert_eq!(one, counted(command, &[&folder]), "{command}");
        let (_, stderr) = told(command, &[&folder, "--model-config", &folder]);
        assert!(stderr.contains("--model-config is for"), "{stderr}");
        let (_, stderr) = told(command, &["/nowhere"]);
        assert!(
            stderr.contains("/nowhere (--model takes sd15, sdxl"),
            "{stderr}"
        );
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
    let output = run(&["--help"]);
    assert!(output.status.success());
    let stdout = String::from_utf8(output.stdout).unwrap();
    for command in ["generate", "metrics", "workers", "bench"] {
        let listed = stdout.lines().any(|l| l.trim().starts_with(command));
        assert!(listed, "{command} is not in: {stdout}");
        let output = run(&[command, "--help"]);
        assert!(output.status.success(), "{command}");
    }
    let output = run(&["--version"]);
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
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty());
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
