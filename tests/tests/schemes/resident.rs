//! Resident strips over real workers, against the unsplit picture and against what was promised.

use lacuna_orchestrator::schemes::count::Count;
use lacuna_orchestrator::schemes::{Setting, Sizes};
use lacuna_protocol::placement::Wire;
use serde_json::Value;
use tests::golden::{Golden, MODELS, golden_png, repository};
use tests::journey::{Journey, Png, lacuna};
use tests::reference::psnr;

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

/// The number of rows at the coarsest level of the tiny models is two to four.
const WORKERS: [usize; 4] = [1, 2, 3, 4];

#[tokio::test(flavor = "multi_thread")]
async fn strips_make_the_picture_that_the_whole_makes() {
    for name in MODELS {
        let journey = Journey::golden(&Golden::load(name)).with("--steps", "4");
        let local = journey.go().await.unwrap();
        let mut counts = 0;
        for n in WORKERS {
            let split = journey.clone().on_resident_strips(n);
            for attention in [
                "paired",
                "fused",
                "tokens,tiled",
                "qkv",
                "tiled",
                "broadcast,qkv,fused",
            ] {
                for [prompt, latents, lanes] in
                    [["hidden", "shared", "true"], ["shared", "hidden", "false"]]
                {
                    let split = split.clone().with("--self-attention", attention);
                    let split = split.with("--workers-prompt", prompt);
                    let split = split.with("--workers-latents", latents);
                    let split = split.with("--lanes", lanes).go().await;
                    let split = match split {
                        Err(error) if error.contains("coarsest") => continue,
                        other => other.unwrap(),
                    };
                    let psnr = split.latents_psnr(&local);
                    let case = format!("{name}: {n} workers, {attention}, {prompt}");
                    println!("{case}: {psnr:.1} dB");
                    assert!(psnr >= 110.0, "{case}: {psnr:.1} dB");
                    counts += 1;
                }
            }
        }
        assert!(counts >= 16, "{name}: only {counts} cases");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fewer_bytes_cost_little_quality() {
    for name in MODELS {
        let journey = Journey::golden(&Golden::load(name));
        let local = journey.go().await.unwrap();
        let mut bytes = Vec::new();
        // Random weights and eight steps: far more changes from step to step than in any real picture.
        for (wire, least) in [
            ("f32", 110.0),
            ("f16", 60.0),
            ("bf16", 40.0),
            ("delta8", 40.0),
            ("int8", 30.0),
            ("delta4", 20.0),
            ("halo=f16,attention=delta4", 20.0),
        ] {
            let split = journey.clone().on_resident_strips(2).with("--wire", wire);
            let split = split.go().await.unwrap();
            let psnr = split.latents_psnr(&local);
            println!("{name}: {wire} {psnr:.1} dB");
            assert!(psnr >= least, "{name}: {wire} {psnr:.1} dB");
            bytes.push(
                split.report()["kinds"]["attention"]["payload_up"]
                    .as_u64()
                    .unwrap(),
            );
        }
        assert_eq!(bytes[1] * 2, bytes[0]);
        assert_eq!(bytes[2] * 2, bytes[0]);
        assert!(bytes[3..].iter().all(|b| *b < bytes[1]));
    }
}

/// Any number of strips, even ones and uneven, of 72 x 56 latents, against the reference's picture.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_picture_is_the_references_on_any_number_of_strips() {
    let golden = Golden::load("large");
    let want = Png::read(&golden_png("large")).values();
    let latents = golden.host("pipe.latents");
    for (n, attention, wire, least) in [
        (3, "paired", "f32", 60.0),
        (5, "fused", "f32", 60.0),
        (5, "tiled", "f32", 60.0),
        (7, "tokens,paired", "f32", 60.0),
        (9, "qkv", "f32", 60.0),
        (7, "paired", "f16", 60.0),
        (3, "paired", "delta4", 36.9),
    ] {
        let journey = Journey::golden(&golden).on_resident_strips(n);
        let journey = journey
            .with("--self-attention", attention)
            .with("--wire", wire);
        let files = journey.go().await.unwrap();
        assert_eq!(files.latents().shape, latents.shape);
        let psnr = psnr(&files.png().values(), &want, 255.0);
        println!("{n} strips, {attention}, {wire}: {psnr:.1} dB");
        assert!(
            psnr >= least,
            "{n} strips, {attention}, {wire}: {psnr:.1} dB"
        );
    }
}

/// What the policies' quality floors are taken from.
#[tokio::test(flavor = "multi_thread")]
async fn a_demo_picture_keeps_what_each_wire_promises() {
    let Some(journey) = Journey::demo() else {
        return;
    };
    for (steps, scheduler) in [
        (25, None),
        (4, None),
        (2, None),
        (1, None),
        (4, Some("lcm")),
        (2, Some("lcm")),
    ] {
        let mut journey = journey.clone().with("--steps", steps.to_string());
        if let Some(scheduler) = scheduler {
            journey = journey
                .with("--scheduler", scheduler)
                .with("--guidance", "1");
        }
        let local = journey.go().await.unwrap().png();
        for wire in Wire::ALL {
            let flag = lacuna_orchestrator::named::name(&wire);
            let split = journey.clone().on_resident_strips(4).with("--wire", &flag);
            let split = split.go().await.unwrap().png();
            let psnr = psnr(&split.values(), &local.values(), 255.0);
            println!("{steps} steps, {flag} {psnr:.1} dB");
            let promised = lacuna_orchestrator::schemes::resident::promised_by(wire, Some(steps));
            assert!(
                psnr >= promised.unwrap_or(f64::INFINITY),
                "{steps} steps, {flag} {psnr:.1} dB"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_picture_is_the_same_to_the_last_bit() {
    let Some(journey) = Journey::demo() else {
        return;
    };
    let journey = journey.with("--steps", "10");
    let local = journey.go().await.unwrap();
    for (n, attention) in [(3, "paired"), (4, "fused,qkv"), (8, "tokens")] {
        let split = journey.clone().on_resident_strips(n);
        let split = split
            .with("--self-attention", attention)
            .go()
            .await
            .unwrap();
        assert!(
            split.latents() == local.latents(),
            "{n} workers, {attention}"
        );
        assert!(
            split.png().rgb == local.png().rgb,
            "{n} workers, {attention}"
        );
    }
}

/// What `lacuna cost` promises is what a run counts, kind by kind.
#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_are_those_that_were_promised() {
    for (scheme, n, attention, prompt, wire) in [
        ("ppidm", 1, "paired", "hidden", "f32"),
        ("ppidm", 3, "paired", "hidden", "f32"),
        ("ppidm", 16, "paired", "hidden", "f32"),
        ("resident", 1, "paired", "hidden", "f32"),
        ("resident", 2, "paired", "hidden", "f16"),
        ("resident", 2, "fused", "hidden", "f32"),
        ("resident", 2, "tokens", "shared", "bf16"),
        ("resident", 2, "qkv", "hidden", "f16"),
        ("resident", 2, "broadcast", "shared", "f32"),
        ("resident", 2, "fused", "hidden", "int8"),
        ("resident", 2, "paired", "shared", "delta8"),
        ("resident", 2, "qkv", "hidden", "delta4"),
        ("resident", 2, "broadcast", "hidden", "delta4"),
        ("resident", 2, "tiled", "hidden", "f32"),
        ("resident", 2, "tiled", "shared", "delta4"),
        ("resident", 2, "tokens", "hidden", "delta8"),
    ] {
        let case = format!("{scheme}, {n} workers, {attention}, {prompt}, {wire}");
        let golden = Golden::load("sd1");
        let steps = 3;
        let journey = Journey::golden(&golden).with("--steps", steps.to_string());
        let journey = journey.over_local_workers(n).with("--scheme", scheme);
        let journey = journey.with("--self-attention", attention);
        // What else the number of bytes depends on, each way with each of some settings.
        let [latents, lanes] = match attention.len() % 2 {
            0 => ["hidden", "true"],
            _ => ["shared", "false"],
        };
        let journey = journey
            .with("--workers-prompt", prompt)
            .with("--workers-latents", latents)
            .with("--lanes", lanes)
            .with("--wire", wire);
        let report = journey.go().await.unwrap().report();
        let [_, _, rows, columns] = golden.host("pipe.latents").dims().unwrap();
        let options = [
            ("self-attention", attention),
            ("workers-prompt", prompt),
            ("workers-latents", latents),
            ("wire", wire),
            ("lanes", lanes),
        ];
        let setting = Setting {
            scheme: tests::scheme::scheme(scheme, &options),
            sizes: Sizes {
                latents: [2, rows, columns],
                levels: 0,
                tokens: 77,
            },
            adapted: false,
        };
        let promised = promise(setting, n);
        let calls = golden.host("pipe.timesteps").data.len();
        let calls = if calls == 8 { steps } else { steps + calls - 8 };
        let mut total = [0, 0];
        for (kind, counted) in report["kinds"].as_object().unwrap() {
            let of = |key: &str| counted[key].as_u64().unwrap();
            let sum = |call: &Count| {
                let each = call.exchanges.iter();
                let each = each.filter(|e| e.kind.to_string() == *kind);
                each.fold([0, 0], |[up, down], e| {
                    let sum = |bytes: &[usize]| bytes.iter().sum::<usize>() as u64;
                    [up + sum(&e.up), down + sum(&e.down)]
                })
            };
            let [first, later] = promised.each_ref().map(sum);
            let want = [0, 1].map(|way| first[way] + (calls as u64 - 1) * later[way]);
            assert_eq!(
                [of("payload_up"), of("payload_down")],
                want,
                "{case}: {kind}"
            );
            assert!(of("bytes_up") > of("payload_up"), "{case}: {kind}");
            total = [total[0] + want[0], total[1] + want[1]];
        }
        assert!(total.iter().all(|bytes| *bytes > 0), "{case}");
    }
}

/// The first call and the later ones, of the model sd1.
fn promise(setting: Setting, workers: usize) -> [Count; 2] {
    let unet = tests::golden::model_dir("sd1").join("unet/config.json");
    let unet = lacuna_model::unet::UNetConfig::from_file(&unet)
        .unwrap()
        .build();
    let sizes = Sizes {
        levels: unet.levels(),
        ..setting.sizes
    };
    let scheme = setting.scheme;
    Setting {
        scheme,
        sizes,
        adapted: false,
    }
    .first_calls(&unet, workers)
    .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_reported_work_is_all_of_the_work() {
    let journey = Journey::golden(&Golden::load("sd2")).with("--steps", "4");
    let alone = journey.go().await.unwrap().report();
    let alone = alone["user"]["gflop"].as_f64().unwrap();
    let number = |value: &Value| value.as_f64().unwrap();
    for attention in ["paired", "qkv"] {
        let split = journey.clone().on_resident_strips(2);
        let report = split
            .with("--self-attention", attention)
            .go()
            .await
            .unwrap()
            .report();
        let workers = report["workers"].as_array().unwrap();
        let of_workers: f64 = workers.iter().map(|w| number(&w["gflop"])).sum();
        let all = of_workers + number(&report["user"]["gflop"]);
        assert!(
            (all / alone - 1.0).abs() < 1e-3,
            "{attention}: {all} of {alone}"
        );
        assert!(of_workers > 0.4 * all, "{attention}: {of_workers} of {all}");
        assert!(workers.iter().all(|w| number(&w["rows"]) == 0.5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_workers_start_as_there_are_rows_for() {
    // Eight rows of latents, one at the coarsest of four levels.
    let journey = Journey::seeded(&Golden::load("sd1")).with("--steps", "2");
    let journey = journey.with("--width", "16").with("--height", "16");
    let files = journey.with("--scheme", "resident").go().await.unwrap();
    assert_eq!(files.report()["workers"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_workers_than_rows_are_refused() {
    let journey = Journey::golden(&Golden::load("sd1")).on_resident_strips(16);
    let error = journey.go().await.err().unwrap();
    assert_names(&error, &["16 workers", "coarsest", "use at most"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_papers_tables_are_recomputed_cell_by_cell() {
    let unet = repository().join("configs/models/sd15/unet/config.json");
    let unet = lacuna_model::unet::UNetConfig::from_file(&unet)
        .unwrap()
        .build();
    let cells = lacuna_orchestrator::cost::paper::cells(&unet).unwrap();
    assert_eq!(cells.len(), 3 * 3 * 6 + 7);
    for cell in &cells {
        // Either the digits agree or the reason is known, never both.
        assert_eq!(cell.agrees(), cell.erratum.is_none(), "{cell:?}");
    }
    let find = |place: &str| cells.iter().find(|c| c.place == place).unwrap().recomputed;
    assert!((find("one iteration") - 59.7).abs() < 0.05);
    assert!((find("VIII convolution, up") - 18.5).abs() < 0.06);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_cost_command_runs_and_refuses_nonsense() {
    let model = repository().join("configs/models/sd15");
    let cost = |more: &[&str]| {
        let mut arguments = vec![
            "cost".to_owned(),
            "--model".into(),
            model.display().to_string(),
        ];
        arguments.extend(more.iter().map(|a| (*a).to_owned()));
        lacuna(arguments)
    };
    cost(&[]).await.unwrap();
    cost(&["--json", "--scheme", "ppidm", "--batch", "2"])
        .await
        .unwrap();
    cost(&["--paper-tables"]).await.unwrap();
    for (arguments, parts) in [
        (&["--size", "500x512"][..], &["width", "500"][..]),
        (&["--size", "big"], &["512x768"]),
        (&["--workers", "9"], &["9 workers", "8 rows"]),
        (&["--workers", "0"], &["--workers 0"]),
        (&["--uplink-mbps", "0"], &["--uplink-mbps"]),
        (&["--wire", "f8"], &["f8", "bf16"]),
    ] {
        let error = cost(arguments).await.unwrap_err();
        assert_names(&error, parts);
    }
}
