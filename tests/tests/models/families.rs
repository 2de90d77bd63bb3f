//! Models whose pipelines are not Stable Diffusion's own, against the reference library: whole, and cut.

use lacuna_model::device::OpenDevice;
use lacuna_model::survey::{Operation, survey};
use lacuna_orchestrator::family::Family;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::text::{Prompt, PromptOptions};
use tests::golden::{Golden, golden_png, model_dir};
use tests::journey::{Journey, Png};
use tests::reference::psnr;

const FAMILIES: [(&str, Family); 4] = [
    ("xl", Family::StableDiffusionXl),
    ("xl-distilled", Family::StableDiffusionXl),
    ("guided-inside", Family::StableDiffusion),
    ("consistency", Family::LatentConsistency),
];

fn pipeline(name: &str) -> Pipeline {
    Pipeline::open(&model_dir(name), None, &[], &OpenDevice::cpu().device).unwrap()
}

/// Work of a picture's calls, in billions: keys and values of the prompt are made once.
fn gflop(golden: &Golden) -> f64 {
    let name = golden.case()["name"].as_str().unwrap();
    let pipeline = pipeline(name);
    let guidance = golden.case()["guidance"].as_f64().unwrap() as f32;
    let steps = golden.case()["steps"].as_u64().unwrap();
    let sampling = pipeline.sampling(steps as usize, Some(guidance));
    let [_, _, rows, columns] = golden.host("pipe.latents").dims().unwrap();
    let sizes = [sampling.batch(), rows, columns];
    let operations = survey(pipeline.unet(), sizes, pipeline.tokens()).unwrap();
    let times = |o: &Operation| if o.makes_prompt_keys() { 1 } else { steps };
    let flop: u64 = operations.iter().map(|o| o.flop * times(o)).sum();
    flop as f64 / 1e9
}

#[tokio::test(flavor = "multi_thread")]
async fn their_pictures_are_those_of_the_reference_whole_and_cut() {
    for (name, family) in FAMILIES {
        let golden = Golden::load(name);
        assert_eq!(pipeline(name).family(), family, "{name}");
        let journey = Journey::seeded(&golden);
        let want = Png::read(&golden_png(name));
        let whole = journey.go().await.unwrap();
        let told = whole.report()["user"]["gflop"].as_f64().unwrap();
        assert_eq!(told, gflop(&golden), "{name}");
        let decibels = psnr(&whole.png().values(), &want.values(), 255.0);
        println!("{name}: PNG against diffusers {decibels:.1} dB");
        assert!(decibels >= 60.0, "{name}: {decibels:.1} dB");
        for cut in [
            journey.clone().over_local_workers(2),
            journey.clone().on_resident_strips(3).with("--wire", "f32"),
        ] {
            let cut = cut.go().await.unwrap();
            assert!(cut.latents() == whole.latents(), "{name}: cut");
        }
        // Masks are drawn anew each time: by fewer bits one picture in many is below.
        let blind = journey.clone().by_shares(2);
        let blind = blind.with("--share-bits", "quality").go().await.unwrap();
        let decibels = psnr(&blind.png().values(), &want.values(), 255.0);
        assert!(decibels >= 45.0, "{name}: blind: {decibels:.1} dB");
    }
}

#[test]
fn what_their_text_encoders_make_of_a_prompt_is_that_of_the_reference() {
    for (name, family) in FAMILIES {
        let golden = Golden::load(name);
        let (case, pipeline) = (golden.case(), pipeline(name));
        let prompt = Prompt {
            text: case["prompt"].as_str().unwrap().into(),
            options: PromptOptions {
                negative_prompt: case["negative_prompt"].as_str().map(Into::into),
                clip_skip: usize::from(name == "xl-distilled"),
                ..PromptOptions::default()
            },
        };
        let guidance = case["guidance"].as_f64().unwrap() as f32;
        let sampling = pipeline.sampling(1, Some(guidance));
        let shape = pipeline.latent_shape(None, None).unwrap();
        let told = pipeline.encode(&prompt, &sampling, shape).unwrap();
        golden.check("text.context", told.context);
        assert_eq!(told.added.is_some(), family == Family::StableDiffusionXl);
        if let Some(added) = told.added {
            golden.check("text.pooled", added.pooled);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_do_not_fit_are_named() {
    let golden = Golden::load("xl");
    let refused = async |edit: (&str, &str, serde_json::Value)| {
        let copy = tests::model_copy::ModelCopy::of("xl");
        copy.set(edit.0, edit.1, edit.2);
        Journey::of(&golden, copy.path()).go().await.err().unwrap()
    };
    for (edit, named) in [
        (
            ("text_encoder_2/config.json", "projection_dim", 16.into()),
            "text_projection.weight",
        ),
        (
            (
                "tokenizer_2/tokenizer_config.json",
                "model_max_length",
                40.into(),
            ),
            "model_max_length",
        ),
        (
            (
                "unet/config.json",
                "projection_class_embeddings_input_dim",
                64.into(),
            ),
            "add_embedding.linear_1",
        ),
        (
            ("unet/config.json", "addition_embed_type", ().into()),
            "addition_embed_type",
        ),
        (
            ("vae/config.json", "latents_mean", vec![0.0].into()),
            "latents_mean",
        ),
        (
            ("model_index.json", "text_encoder_2", vec![(); 2].into()),
            "text_encoder_2",
        ),
    ] {
        let error = refused(edit).await;
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adapter_in_kohyas_names_changes_all_networks_as_in_the_reference() {
    let golden = Golden::load("xl-adapted");
    let file = golden_png("xl").with_file_name("adapter.safetensors");
    let journey = Journey::seeded(&golden);
    let plain = journey.go().await.unwrap();
    let adapted = journey
        .clone()
        .with("--lora", format!("{}:0.8", file.display()));
    let whole = adapted.go().await.unwrap();
    let want = Png::read(&golden_png("xl-adapted"));
    let decibels = psnr(&whole.png().values(), &want.values(), 255.0);
    println!("xl with an adapter: PNG against diffusers {decibels:.1} dB");
    assert!(decibels >= 60.0, "{decibels:.1} dB");
    assert!(whole.report()["model"] != plain.report()["model"]);
    let cut = adapted.on_resident_strips(2).with("--wire", "f32");
    assert!(cut.go().await.unwrap().latents() == whole.latents());
    // Of another model, nothing is left out in silence.
    let other = Journey::seeded(&Golden::load("sd1")).with("--lora", file);
    let error = other.go().await.err().unwrap();
    assert!(
        error.contains("adapter.safetensors: down_blocks_1") && error.contains("do not fit"),
        "{error}"
    );
}
