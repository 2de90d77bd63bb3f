//! Whole journeys: a command line in, a picture out, over real workers on loopback ports.

use lacuna_model::device::OpenDevice;
use lacuna_model::survey::{Operation, survey};
use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_wire::HostTensor;
use serde_json::Value;
use tests::golden::{Golden, MODELS, compare, golden_png, has_golden, model_dir, repository};
use tests::journey::{Files, Journey, Png, lacuna};
use tests::reference::psnr;

/// Tokens that CLIP makes of any prompt.
const PROMPT_TOKENS: usize = 77;

fn pipeline(name: &str) -> Pipeline {
    Pipeline::open(&model_dir(name), None, &[], &OpenDevice::cpu().device).unwrap()
}

/// PSNR of what two latents decode to, before it is rounded to bytes.
fn decoded_psnr(pipeline: &Pipeline, a: &HostTensor, b: &HostTensor) -> f64 {
    let decode = |latents: &HostTensor| -> Vec<f64> {
        let picture = pipeline.decode(latents.clone()).unwrap();
        picture.rgb.iter().map(|v| f64::from(*v)).collect()
    };
    psnr(&decode(a), &decode(b), 1.0)
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_picture_is_that_of_the_reference() {
    for name in MODELS {
        let golden = Golden::load(name);
        let files = Journey::golden(&golden).go().await.unwrap();
        check_against_reference(&golden, name, &files);
    }
}

fn check_against_reference(golden: &Golden, name: &str, files: &Files) {
    let (latents, want) = (files.latents(), golden.host("pipe.latents"));
    assert_eq!(latents.shape, want.shape);
    let distance = compare(&format!("{name}: latents"), &latents.data, &want.data);
    let (png, want) = (files.png(), Png::read(&golden_png(name)));
    assert_eq!((png.width, png.height), (want.width, want.height));
    let psnr = psnr(&png.values(), &want.values(), 255.0);
    println!(
        "{name}: PNG against diffusers {psnr:.1} dB, latents off by {:.1e} at most, {:.3} of the \
         tolerance",
        distance.max_error, distance.worst
    );
    assert!(psnr >= 60.0, "{name}: {psnr:.1} dB");
}

/// The split picture is the unsplit, to the last bit of its latents, for any number of workers.
async fn check_split(name: &str, journey: Journey, workers: &[usize]) {
    let local = journey.go().await.unwrap();
    for n in workers {
        let split = journey.clone().over_local_workers(*n).go().await.unwrap();
        assert!(split.latents() == local.latents(), "{name}: {n} workers");
        assert!(split.png().rgb == local.png().rgb, "{name}: {n} workers");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_split_picture_is_the_whole_one() {
    for name in MODELS {
        let journey = Journey::golden(&Golden::load(name));
        check_split(name, journey, &[1, 2, 3, 4, 8, 16]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_papers_normalisations_lose_quality_and_exact_does_not() {
    for name in MODELS {
        let pipeline = pipeline(name);
        let journey = Journey::golden(&Golden::load(name));
        let local = journey.go().await.unwrap().latents();
        let mut psnrs = Vec::new();
        for mode in ["exact", "averaged", "local"] {
            let split = journey.clone().over_local_workers(4);
            let split = split.with("--groupnorm", mode).go().await.unwrap();
            psnrs.push(decoded_psnr(&pipeline, &split.latents(), &local));
        }
        println!(
            "{name}: exact {:.1} dB, averaged {:.1} dB, local {:.1} dB",
            psnrs[0], psnrs[1], psnrs[2]
        );
        assert!(psnrs[0] >= 80.0, "{name}: {psnrs:?}");
        assert!(psnrs[1] < 70.0 && psnrs[2] < 70.0, "{name}: {psnrs:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seed_gives_the_noise_of_torch() {
    for name in MODELS {
        let golden = Golden::load(name);
        let files = Journey::seeded(&golden).go().await.unwrap();
        check_against_reference(&golden, name, &files);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_pictures_have_seeds_that_count_on() {
    let journey = Journey::seeded(&Golden::load("sd2"))
        .with("--steps", "2")
        .with("--seed", "100");
    let three = journey.clone().with("--count", "3").go().await.unwrap();
    assert_eq!(
        three.names(),
        [
            "latents-0.safetensors",
            "latents-1.safetensors",
            "latents-2.safetensors",
            "pic-0.png",
            "pic-1.png",
            "pic-2.png",
            "report.json",
        ]
    );
    let pictures = three.report()["pictures"].as_array().unwrap().len();
    assert_eq!(pictures, 3);
    let mut seen: Vec<Png> = Vec::new();
    for (i, seed) in ["100", "101", "102"].into_iter().enumerate() {
        let one = journey.clone().with("--seed", seed).go().await.unwrap();
        let of_three = Png::read(&three.path(&format!("pic-{i}.png")));
        assert_eq!(of_three.text("seed"), Some(seed));
        assert_eq!(of_three, one.png());
        let latents = std::fs::read(three.path(&format!("latents-{i}.safetensors"))).unwrap();
        let alone = std::fs::read(one.path("latents.safetensors")).unwrap();
        assert!(latents == alone, "latents of seed {seed}");
        assert!(
            seen.iter().all(|p| p.rgb != of_three.rgb),
            "two seeds, one picture"
        );
        seen.push(of_three);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_says_how_it_was_made() {
    let golden = Golden::load("sd2");
    let png = Journey::seeded(&golden).go().await.unwrap().png();
    for (keyword, text) in [
        ("prompt", golden.case()["prompt"].as_str().unwrap()),
        (
            "negative_prompt",
            golden.case()["negative_prompt"].as_str().unwrap(),
        ),
        ("seed", "8"),
        ("steps", "8"),
        ("guidance", "5"),
        ("scheme", "local"),
        ("size", "24x32"),
        ("model", pipeline("sd2").digest()),
    ] {
        assert_eq!(png.text(keyword), Some(text), "{keyword}");
    }
    assert!(png.text("Software").unwrap().starts_with("lacuna "));
    let none = ["clip_skip", "eta", "vae", "crop"].map(|keyword| png.text(keyword));
    assert_eq!(none, [None; 4]);
    let vae = model_dir("xl").join("vae");
    let other = Journey::seeded(&Golden::load("xl"))
        .with("--steps", "1")
        .with("--clip-skip", "1")
        .with("--crop", "8x16")
        .with("--vae", vae);
    let png = other.go().await.unwrap().png();
    for (keyword, text) in [("clip_skip", "1"), ("crop", "8x16"), ("vae", "vae")] {
        assert_eq!(png.text(keyword), Some(text), "{keyword}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_the_model_or_the_scheduler_is_refused() {
    let of = |name: &str| Journey::seeded(&Golden::load(name));
    for (journey, parts) in [
        (
            of("sd1").with("--clip-skip", "9"),
            ["--clip-skip 9", "at most"],
        ),
        // Of SDXL one is left out in any case.
        (
            of("xl").with("--clip-skip", "2"),
            ["--clip-skip 2", "1 at most"],
        ),
        (of("sd1").with("--crop", "1x1"), ["--crop", "SDXL"]),
        (
            of("sd1")
                .with("--scheduler", "ddim")
                .with("--scheduler-option", "use_karras_sigmas=true"),
            ["use_karras_sigmas", "DDIMScheduler does not read it"],
        ),
    ] {
        let error = journey.go().await.err().unwrap();
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[track_caller]
fn assert_close(what: &str, got: f64, want: f64, tolerance: f64) {
    assert!(
        (got - want).abs() <= tolerance * want.abs(),
        "{what} is {got}, want {want}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_report_adds_up() {
    let golden = Golden::load("sd1");
    let journey = Journey::golden(&golden).over_local_workers(4);
    let report = journey.go().await.unwrap().report();
    let workers = report["workers"].as_array().unwrap();
    assert_eq!(report["scheme"], "ppidm");
    assert_eq!(report["model"], pipeline("sd1").digest());
    assert_eq!(workers.len(), 4);
    for (i, worker) in workers.iter().enumerate() {
        assert_eq!(worker["provider"], format!("loopback-{i}"));
        assert_eq!(number(&worker["rows"]), 0.25);
        let seen = number(&worker["rows_with_halo"]);
        assert!((0.26..=0.75).contains(&seen), "worker {i} was sent {seen}");
        assert!(number(&worker["gflop"]) > 0.0);
    }
    for key in ["bytes_up", "bytes_down"] {
        let of_workers: f64 = workers.iter().map(|w| number(&w[key])).sum();
        let kinds = report["kinds"].as_object().unwrap();
        assert_eq!(
            kinds.keys().collect::<Vec<_>>(),
            ["attention", "conv", "group_norm"]
        );
        let of_kinds: f64 = kinds.values().map(|k| number(&k[key])).sum();
        assert!(of_workers > 0.0);
        assert_eq!(of_workers, of_kinds, "{key}");
        assert_eq!(of_workers, number(&report["user"][key]), "{key}");
    }
    let requests = |list: Vec<&Value>| list.iter().map(|v| number(&v["requests"])).sum::<f64>();
    assert_eq!(
        requests(workers.iter().collect()),
        requests(report["kinds"].as_object().unwrap().values().collect())
    );
    let seconds = report["seconds"].as_object().unwrap();
    assert_eq!(seconds.len(), 7);
    let total = number(&seconds["total"]);
    assert!(seconds.values().all(|s| (0.0..=total).contains(&number(s))));

    // All work is done once, by somebody: nothing is counted twice, nothing left out.
    let [_, _, rows, columns] = golden.host("pipe.latents").dims().unwrap();
    let unet = pipeline("sd1").unet().clone();
    let operations = survey(&unet, [2, rows, columns], PROMPT_TOKENS).unwrap();
    let calls = golden.host("pipe.timesteps").data.len();
    let (keys, others): (Vec<_>, Vec<_>) = operations.iter().partition(|o| o.makes_prompt_keys());
    let gflop = |of: Vec<&Operation>| of.iter().map(|o| o.flop).sum::<u64>() as f64 / 1e9;
    // Keys and values of the prompt are made once.
    let want = gflop(others) * calls as f64 + gflop(keys);
    let of_workers: f64 = workers.iter().map(|w| number(&w["gflop"])).sum();
    let split = of_workers + number(&report["user"]["gflop"]);
    assert_close("GFLOP of all", split, want, 0.01);
    let local = Journey::golden(&golden).go().await.unwrap().report();
    assert_close("GFLOP alone", number(&local["user"]["gflop"]), want, 0.01);
    assert_eq!(local["workers"].as_array().unwrap().len(), 0);
    assert_eq!(local["user"]["bytes_up"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_scheduler_makes_a_picture_of_its_own() {
    let journey = Journey::golden(&Golden::load("sd1")).with("--steps", "6");
    let mut pictures: Vec<(&str, HostTensor)> = Vec::new();
    for scheduler in ["ddim", "pndm", "euler", "euler-a", "dpm++"] {
        let journey = journey.clone().with("--scheduler", scheduler);
        let files = journey.go().await.unwrap();
        assert_eq!(files.png().text("scheduler"), Some(scheduler));
        let latents = files.latents();
        latents.check_finite(scheduler).unwrap();
        for (other, theirs) in &pictures {
            assert_ne!(theirs, &latents, "{scheduler} is {other}");
        }
        // The split changes nothing for a scheduler that draws fresh noise either.
        if scheduler == "euler-a" {
            let split = journey.over_local_workers(2).go().await.unwrap();
            let psnr = decoded_psnr(&pipeline("sd1"), &split.latents(), &latents);
            assert!(psnr >= 80.0, "{scheduler}: {psnr:.1} dB");
        }
        pictures.push((scheduler, latents));
    }
    let error = journey
        .with("--scheduler", "magic")
        .go()
        .await
        .err()
        .unwrap();
    assert_names(&error, &["magic", "euler-a"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_before_the_work() {
    let golden = Golden::load("sd1");
    let seeded = Journey::seeded(&golden);
    let given = Journey::golden(&golden);
    let noise = |shape: [usize; 4]| {
        HostTensor::new(shape, TorchRng::new(1).randn(shape.iter().product())).unwrap()
    };
    let poisoned = {
        let mut noise = noise([1, 4, 8, 8]);
        noise.data[5] = f32::NAN;
        noise
    };
    for (journey, parts) in [
        (
            seeded.clone().with("--width", "17"),
            &["--width 17", "multiple of 2"][..],
        ),
        (
            seeded.clone().with("--height", "0"),
            &["--height 0", "multiple of 2"],
        ),
        (
            given.clone().with("--width", "32"),
            &["noise-0.safetensors", "wanted are"],
        ),
        (given.clone().with("--count", "2"), &["--count is 2"]),
        (
            given.clone().with_noise(&noise([1, 3, 8, 8])),
            &["3 x 8 x 8"],
        ),
        (given.clone().with_noise(&poisoned), &["not finite"]),
        (seeded.clone().with("--count", "0"), &["--count 0"]),
        (seeded.clone().with("--steps", "0"), &["steps"]),
        (seeded.clone().with("--guidance", "NaN"), &["--guidance"]),
        (
            seeded.clone().with("--local-workers", "17"),
            &["--workers 17"],
        ),
        (
            seeded.clone().with("--model", "/nowhere/at/all"),
            &["/nowhere/at/all"],
        ),
    ] {
        for scheme in ["local", "ppidm"] {
            // `go` sees to it that no file is left.
            let journey = journey.clone().with("--scheme", scheme);
            let error = journey.go().await.err().expect("a refusal");
            assert_names(&error, parts);
            assert_eq!(error.lines().count(), 1, "{error}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_guidance_the_unet_runs_on_one_entry() {
    let golden = Golden::load("sd2");
    let guided = Journey::golden(&golden).go().await.unwrap();
    let journey = Journey::golden(&golden).with("--guidance", "1");
    let alone = journey.go().await.unwrap();
    assert_ne!(alone.latents(), guided.latents());
    let work = |files: &Files| number(&files.report()["user"]["gflop"]);
    // The timestep's embedding is computed once in either case, so it is a little less than twice.
    let ratio = work(&guided) / work(&alone);
    assert!((1.9..2.0).contains(&ratio), "{ratio}");
    // What not to see has no place without guidance.
    let other = journey.clone().with("--negative-prompt", "a blue circle");
    assert_eq!(other.go().await.unwrap().latents(), alone.latents());
    let split = journey.over_local_workers(4).go().await.unwrap();
    let psnr = decoded_psnr(&pipeline("sd2"), &split.latents(), &alone.latents());
    assert!(psnr >= 80.0, "{psnr:.1} dB");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_demo_models_picture_is_that_of_the_reference_split_or_not() {
    if !has_golden("demo") {
        println!("skipped: tests/goldens/demo.safetensors is not there (make_goldens.py makes it)");
        return;
    }
    let golden = Golden::load("demo");
    let journey = Journey::of(&golden, &repository().join("assets/demo-model"))
        .with_noise(golden.host("pipe.latents0"))
        .with("--scheduler", "ddim");
    let local = journey.go().await.unwrap();
    check_against_reference(&golden, "demo", &local);
    check_split("demo", journey, &[3, 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bench_and_workers_commands_run() {
    let config = model_dir("odd").join("unet/config.json");
    let bench = ["bench", "--rows", "6", "--columns", "5", "--calls", "1"];
    let bench = bench.into_iter().chain(["--device", "cpu", "--config"]);
    let bench = bench.chain([config.to_str().unwrap(), "--workers", "2"]);
    lacuna(bench.clone()).await.unwrap();
    lacuna(bench.clone().chain(["--link", "900,900,1", "--json"]))
        .await
        .unwrap();
    let error = lacuna(bench.chain(["--link", "7g"])).await.unwrap_err();
    assert_names(&error, &["7g", "fibre"]);
    let error = lacuna(["workers", "--workers", "/nowhere.toml"]).await;
    assert_names(&error.unwrap_err(), &["/nowhere.toml"]);
}
