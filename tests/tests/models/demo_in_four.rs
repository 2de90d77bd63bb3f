//! The demo model in four calls on one batch entry, by its adapter.

use tests::golden::{Golden, golden_png, repository};
use tests::journey::{Files, Journey, Png};
use tests::reference::psnr;

fn journey(golden: &Golden) -> Journey {
    let journey = Journey::of(golden, &repository().join("assets/demo-model"));
    let seed = golden.case()["seed"].to_string();
    journey.with("--seed", seed)
}

fn decibels(files: &Files, want: &Png) -> f64 {
    psnr(&files.png().values(), &want.values(), 255.0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_picture_is_that_of_the_reference_split_or_not() {
    let golden = Golden::load("demo-in-four");
    let want = Png::read(&golden_png("demo-in-four"));
    let plain = journey(&golden);
    let adapter = repository().join("assets/demo-lcm-lora.safetensors");
    let adapted = plain.clone().with("--lora", adapter);
    let whole = adapted.go().await.unwrap();
    let db = decibels(&whole, &want);
    println!("PNG against diffusers {db:.1} dB");
    assert!(db >= 60.0, "{db:.1} dB");
    let split = adapted.clone().on_resident_strips(4).with("--wire", "f32");
    let split = split.go().await.unwrap();
    assert!(split.latents() == whole.latents());
    for (ignored, other) in [
        ("the adapter", plain),
        ("the scheduler", adapted.with("--scheduler", "ddim")),
    ] {
        let db = decibels(&other.go().await.unwrap(), &want);
        println!("without {ignored} {db:.1} dB");
        assert!(db < 40.0, "without {ignored}: {db:.1} dB");
    }
}
