//! `lacuna plan` and `lacuna cost` from their command lines: home or cloud, and one figure for one thing.

mod common;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

fn config(model: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../configs/models")
        .join(model)
}

/// Runs `lacuna` for SD 1.5 with nothing of ours in its environment.
fn lacuna(command: &str, arguments: &[&str]) -> Output {
    let mut run = common::lacuna();
    run.args([command, "--model"]).arg(config("sd15"));
    run.args(arguments).output().unwrap()
}

#[track_caller]
fn json(command: &str, arguments: &[&str]) -> Value {
    let output = lacuna(command, &[arguments, &["--json"]].concat());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A laptop of 200 GFLOP/s with 16 GB, on the paper's link.
const LAPTOP: [&str; 6] = ["--user-gflops", "200", "--memory-gb", "16", "--link", "5g"];

fn plan(more: &[&str]) -> Value {
    json("plan", &[&LAPTOP, more].concat())
}

fn way<'a>(plan: &'a Value, name: &str) -> &'a Value {
    let ways = plan["ways"].as_array().unwrap();
    let found = ways.iter().find(|way| way["name"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {ways:?}"))
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn a_laptop_on_the_papers_link_is_faster_at_home() {
    let plan = plan(&[]);
    let (home, away) = (way(&plan, "local"), way(&plan, "resident, f16"));
    // 50 steps with guidance are 100 times 800.3 GFLOP; the prompt's keys and values come once.
    let gflop = 100.0 * 800.3 + 2.0 * 3.0;
    let seconds = number(&home["cost"]["seconds"]);
    assert!((seconds - gflop / 200.0).abs() < 0.1, "{seconds}");
    assert_eq!(home["cost"]["bytes_up"], 0);
    assert!(home["ledger"].as_object().unwrap().is_empty());
    assert!(number(&away["cost"]["seconds"]) > seconds, "{away}");
    assert_eq!(plan["best"]["fastest"], "local");
    assert_eq!(plan["best"]["least_shown"], "local");
    assert_eq!(plan["best"]["least_memory"], "resident, f16");
    // A picture is 50 calls, as `cost` counts one.
    let call = json(
        "cost",
        &["--batch", "2", "--wire", "f16", "--self-attention", "fused"],
    );
    let bytes = number(&away["cost"]["bytes_up"]) / number(&call["bytes_up"]);
    assert!((bytes - 50.0).abs() < 0.5, "{bytes}");
    // Without guidance it is half the work; on workers the two halves had gone side by side.
    let plain = self::plan(&["--guidance", "1"]);
    let half = |name: &str| number(&way(&plain, name)["cost"]["seconds"]);
    assert!((2.0 * half("local") - seconds).abs() < 0.1);
    assert!(2.0 * half("resident, f16") > number(&away["cost"]["seconds"]));
    assert_eq!(plain["best"]["fastest"], "local");
}

#[test]
fn without_guidance_a_call_has_one_entry() {
    let batch = |more: &[&str]| json("cost", more)["batch"].clone();
    assert_eq!(batch(&[]), 1);
    for (guidance, entries) in [("7.5", 2), ("1", 1), ("0", 1), ("-1", 1)] {
        assert_eq!(batch(&["--guidance", guidance]), entries, "{guidance}");
    }
    // What a model's makers recommend counts for a plan, as it does for a picture.
    let model = tempfile::tempdir().unwrap();
    std::fs::create_dir(model.path().join("unet")).unwrap();
    let [from, to] =
        [config("sd15"), model.path().to_owned()].map(|at| at.join("unet/config.json"));
    std::fs::copy(from, to).unwrap();
    let calls = || {
        let mut run = common::lacuna();
        run.args(["plan", "--steps", "1", "--model"])
            .arg(model.path());
        text(&run.args(LAPTOP).output().unwrap())
    };
    assert!(calls().contains("calls of batch 2"), "{}", calls());
    let recommended = model.path().join("generation_config.json");
    std::fs::write(recommended, r#"{"guidance_scale": 0.0}"#).unwrap();
    assert!(calls().contains("calls of batch 1"), "{}", calls());
}

#[test]
fn a_longer_prompt_is_more_work_and_no_more_bytes() {
    let cost = |tokens: &str| json("cost", &["--prompt-tokens", tokens]);
    let (one, three) = (cost("77"), cost("231"));
    let times = number(&three["once_gflop"]) / number(&one["once_gflop"]);
    assert!((times - 3.0).abs() < 1e-6, "{times}");
    assert!(number(&three["user_gflop"]) > number(&one["user_gflop"]));
    // Who is not given the prompt learns nothing of its length.
    assert_eq!(three["bytes_up"], one["bytes_up"]);
    assert_eq!(one, json("cost", &[]));
    for tokens in ["0", "1025"] {
        let output = lacuna("plan", &["--prompt-tokens", tokens]);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("--prompt-tokens"), "{stderr}");
    }
}

#[test]
fn the_wire_is_chosen_by_the_number_of_calls() {
    let plan = |steps: &str| {
        let slow = ["--user-gflops", "20", "--memory-gb", "16", "--link", "5g"];
        let asked = ["--policy", "fast", "--guidance", "1", "--steps", steps];
        json("plan", &[&slow[..], &asked].concat())
    };
    for (steps, wire, promised) in [
        ("2", "int8", 25.0),
        ("8", "int8", 25.0),
        ("50", "delta4", 40.0),
    ] {
        let plan = plan(steps);
        assert_eq!(
            plan["best"]["fastest"],
            format!("resident, {wire}"),
            "{steps}"
        );
        let wires = &plan["plan"]["placement"]["wires"];
        assert_eq!(wires["attention"], wire, "{steps}: {}", plan["plan"]);
        assert_eq!(
            number(&way(&plan, "resident, delta4")["least_psnr"]),
            promised
        );
    }
}

#[test]
fn a_fast_link_or_a_slow_machine_makes_the_cloud_faster() {
    for more in [
        &["--user-gflops", "40", "--memory-gb", "16", "--link", "5g"][..],
        &[
            "--user-gflops",
            "200",
            "--memory-gb",
            "16",
            "--link",
            "1000,1000,5",
        ],
    ] {
        let plan = json("plan", more);
        assert_eq!(plan["best"]["fastest"], "resident, f16", "{more:?}");
    }
}

#[test]
fn what_does_not_fit_in_memory_is_not_possible_at_home() {
    let little = ["--user-gflops", "200", "--memory-gb", "2"];
    let plan = json("plan", &little);
    let refused = way(&plan, "local")["refused"].as_str().unwrap();
    assert!(refused.contains("2.0 are free"), "{refused}");
    assert_eq!(plan["best"]["fastest"], "resident, f16");
    assert_eq!(plan["best"]["least_shown"], "resident, f16");
    // Nor on workers, where the user's own part does not fit.
    let nothing = json("plan", &["--user-gflops", "200", "--memory-gb", "0.1"]);
    assert!(nothing["best"].is_null(), "{nothing}");
    let memory = number(&way(&plan, "local")["cost"]["memory"]);
    // 860 million weights of four bytes, and features.
    assert!(memory > 3.44e9 && memory < 4.5e9, "{memory}");
    let output = lacuna("plan", &little);
    assert!(text(&output).contains("not possible"), "{}", text(&output));
}

#[test]
fn each_way_that_is_not_allowed_names_its_rule() {
    let plan = plan(&[]);
    for (name, rule) in [("resident, delta4", "wires"), ("ppidm", "prompt = hidden")] {
        let refused = way(&plan, name)["refused"].as_str().unwrap();
        assert!(
            refused.starts_with(&format!("not allowed: {rule}")),
            "{refused}"
        );
    }
    assert_eq!(way(&plan, "resident, f16")["least_psnr"], 60.0);
    assert_eq!(way(&plan, "resident, f32")["least_psnr"], Value::Null);
    let fast = self::plan(&["--policy", "fast"]);
    assert!(way(&fast, "ppidm")["refused"].is_null());
    assert!(way(&fast, "resident, delta4")["refused"].is_null());
}

#[test]
fn two_or_three_providers_are_told_what_is_possible() {
    for (providers, flag) in [("1", "1"), ("2", "0.5"), ("3", "0.375")] {
        let given = [&LAPTOP[..], &["--providers", providers]].concat();
        let output = lacuna("plan", &given);
        let stderr = String::from_utf8(output.stderr.clone()).unwrap();
        // Shares are for two and more.
        let alone = providers == "1";
        assert_eq!(output.status.code(), Some(i32::from(alone)), "{stderr}");
        let said = if alone { stderr } else { text(&output) };
        assert_eq!(said.contains("--scheme blind"), !alone, "{said}");
        for part in [
            "the policy private",
            "max_rows = 0.25",
            &format!("--max-rows {flag},"),
            "workers of 4 providers",
            "--scheme local",
        ] {
            assert!(said.contains(part), "{part:?} is not in: {said}");
        }
        // Home is always told.
        assert!(text(&output).contains("local"), "{}", text(&output));
        let more = ["--providers", providers, "--max-rows", flag];
        assert!(plan(&more)["plan"].is_object(), "{providers}");
    }
}

#[test]
fn what_is_best_by_something_has_a_row() {
    for gflops in ["40", "200", "2000"] {
        for link in ["5g", "100,20,30", "1000,1000,5"] {
            let given = ["--user-gflops", gflops, "--memory-gb", "16", "--link", link];
            for policy in ["private", "nothing"] {
                let output = lacuna("plan", &[&given[..], &["--policy", policy]].concat());
                let said = text(&output);
                let best = said.lines().find(|line| line.starts_with("fastest: "));
                for part in best.unwrap_or_else(|| panic!("{said}")).split("; ") {
                    let (_, name) = part.split_once(": ").unwrap();
                    let row = format!("{name}  ");
                    let is_told = said.lines().any(|line| line.starts_with(&row));
                    assert!(
                        is_told,
                        "{gflops} {link} {policy}: no row of {name}: {said}"
                    );
                }
            }
        }
    }
}

#[test]
fn exchanges_are_for_those_who_ask() {
    let short = text(&lacuna("plan", &LAPTOP));
    let long = text(&lacuna("plan", &[&LAPTOP[..], &["--verbose"]].concat()));
    assert!(short.lines().count() < 25, "{short}");
    assert!(long.lines().count() > short.lines().count() + 20, "{long}");
    assert!(long.contains("down_blocks") && !short.contains("down_blocks"));
}

#[test]
fn this_machine_is_measured_where_nobody_says_its_speed() {
    let plan = json("plan", &[]);
    let sources = &plan["speeds"]["sources"];
    assert_eq!(sources["user"], "measured");
    assert_eq!(sources["link"], "assumed");
    assert!(number(&plan["speeds"]["user_gflops"]) > 0.0);
    assert!(number(&plan["memory"]) > 0.0);
    let sources = self::plan(&[])["speeds"]["sources"].clone();
    assert_eq!(sources["user"], "given");
    assert_eq!(sources["link"], "given");
}

#[test]
fn a_unet_call_has_one_figure_for_its_work() {
    let cost = |arguments: &[&str]| json("cost", &[&["--scheme"], arguments].concat());
    let work = |call: &Value| {
        let workers = call["workers_gflop"].as_array().unwrap();
        workers.iter().map(number).sum::<f64>() + number(&call["user_gflop"])
    };
    for call in [
        cost(&["local"]),
        cost(&["ppidm"]),
        cost(&["resident", "--wire", "f32"]),
        cost(&["resident", "--wire", "delta4"]),
    ] {
        assert_eq!(format!("{:.1}", work(&call)), "800.3", "{call}");
        assert_eq!(
            format!("{:.1}", number(&call["once_gflop"])),
            "3.0",
            "{call}"
        );
    }
    // And a picture is made of that.
    let plan = plan(&["--steps", "3", "--guidance", "1"]);
    for way in plan["ways"].as_array().unwrap() {
        let cost = &way["cost"];
        let all = number(&cost["user_gflop"]) + number(&cost["workers_gflop"]);
        // Under blind each worker of a group multiplies a share of its own.
        match way["name"]
            .as_str()
            .is_some_and(|name| name.starts_with("blind"))
        {
            true => assert!(all > 2404.0, "{way}"),
            false => assert_eq!(format!("{all:.0}"), "2404", "{way}"),
        }
    }
}

#[test]
fn what_is_off_is_named() {
    for (arguments, part) in [
        (&["--steps", "0"][..], "--steps 0"),
        (&["--memory-gb", "0"], "--memory-gb 0"),
        (&["--max-rows", "0"], "--max-rows 0"),
        (&["--max-rows", "1.5"], "--max-rows 1.5"),
        (&["--max-rows", "nan"], "--max-rows NaN"),
        (&["--policy", "privat"], "private, nothing, fast and paper"),
        (&["--policy", "/dev/zero"], "mebibyte"),
        (&["--link", "6g"], "5g, fibre, lan"),
        (&["--link", "5g", "--rtt-ms", "3"], "--rtt-ms"),
        (&["--batch", "1", "--guidance", "7"], "--guidance"),
        (&["--size", "512x509"], "509"),
    ] {
        let output = lacuna("plan", arguments);
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success(), "{arguments:?}");
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
    }
}

/// The system refuses to connect to the broadcast address, so that nothing is ever sent there. Still, it is no
/// loopback address.
#[test]
fn before_a_run_on_providers_it_is_said_what_they_will_see_and_what_home_takes() {
    let folder = tempfile::tempdir().unwrap();
    let fleet = folder.path().join("fleet.toml");
    let worker = |i: usize| {
        format!(
            "[[worker]]\nurl = \"http://255.255.255.255:{}/\"\nprovider = \"p{i}\"\n",
            7700 + i
        )
    };
    std::fs::write(&fleet, (0..4).map(worker).collect::<String>()).unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/goldens/models/sd2");
    let generate = |more: &[&str]| {
        let mut run = Command::new(env!("CARGO_BIN_EXE_lacuna"));
        run.args([
            "generate",
            "a red circle",
            "--device",
            "cpu",
            "--steps",
            "16",
        ]);
        run.arg("--model").arg(&model).arg("--workers").arg(&fleet);
        run.arg("--out")
            .arg(folder.path().join("pic.png"))
            .args(more);
        run.env_remove("RUST_LOG").output().unwrap()
    };
    let output = generate(&[]);
    let (said, stderr) = (text(&output), String::from_utf8(output.stderr).unwrap());
    assert!(!output.status.success());
    assert!(stderr.contains("does not answer"), "{stderr}");
    // The plan chooses the wire where nobody does; f32 would be twice the bytes.
    for part in [
        "resident, f16 (60 dB at least",
        "policy private",
        "providers p0, p1, p2, p3 will each see at most",
        "not the prompt",
        "\nlocal ",
        "\nresident, f16 ",
        "fastest: ",
    ] {
        assert!(said.contains(part), "{part:?} is not in: {said}");
    }
    // What is sent in plain, and to whom, is said too; not where the user knows.
    assert!(stderr.contains("plain HTTP"), "{stderr}");
    let knows = generate(&["--insecure"]);
    assert!(
        !String::from_utf8(knows.stderr)
            .unwrap()
            .contains("plain HTTP")
    );
    let weaker = text(&generate(&["--policy", "fast", "--wire", "delta4"]));
    for part in [
        "resident, delta4 (40 dB at least",
        "the policy fast would allow more than private does, as asked for: max_rows = 1; prompt = shared",
    ] {
        assert!(weaker.contains(part), "{part:?} is not in: {weaker}");
    }
    assert!(!folder.path().join("pic.png").exists());
    // The seed was drawn: whoever wants to go on must be told.
    assert!(stderr.contains("the same command with --seed "), "{stderr}");
    // Workers on this machine are the user's own, until a policy is named: a tunnel may lead to a provider.
    let text_of = std::fs::read_to_string(&fleet).unwrap();
    std::fs::write(&fleet, text_of.replace("255.255.255.255:770", "127.0.0.1:")).unwrap();
    let seen = "providers p0, p1, p2, p3 will each see at most";
    assert!(!text(&generate(&[])).contains(seen));
    assert!(text(&generate(&["--policy", "private"])).contains(seen));
}

#[test]
fn a_plan_needs_no_tokens_and_no_safe_way() {
    let fleet = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/fleet.example.toml");
    let fleet = fleet.to_str().unwrap();
    let speeds = ["--user-gflops", "200", "--fleet", fleet];
    let output = lacuna("plan", &speeds);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{stderr}");
    assert!(text(&output).contains("the workers of"));
    // Who is to be measured must be reached.
    let output = lacuna("plan", &[&speeds[..], &["--measure"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains("token_env) is not set"), "{stderr}");
}
