//! Prompts as people write them: embeddings of textual inversion, weights and long prompts, against the reference library.

use std::path::PathBuf;

use lacuna_model::device::OpenDevice;
use lacuna_model::survey::MOST_PROMPT_TOKENS;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::schemes::Sizes;
use lacuna_orchestrator::schemes::resident::layout::Layout;
use lacuna_orchestrator::schemes::resident::places;
use lacuna_orchestrator::text::{EmbeddingFile, Prompt, PromptOptions, PromptSyntax};
use lacuna_protocol::placement::{self, Placement};
use lacuna_protocol::session::{OpenSession, SessionKind};
use lacuna_protocol::version::PROTOCOL;
use lacuna_worker::Options;
use reqwest::{Method, StatusCode};
use tests::caller::Caller;
use tests::golden::{Golden, golden_png, model_dir};
use tests::journey::{Journey, Png};
use tests::reference::psnr;
use tests::workers::RunningWorker;

/// The name of a case, its model, its embeddings, and the syntax of its prompts.
const CASES: [(&str, &str, &[&str], PromptSyntax); 4] = [
    (
        "embedded",
        "sd1",
        &["toy.safetensors", "mood-7.safetensors"],
        PromptSyntax::Plain,
    ),
    (
        "xl-embedded",
        "xl",
        &["pair.safetensors"],
        PromptSyntax::Plain,
    ),
    ("weighted", "sd1", &[], PromptSyntax::Weighted),
    ("xl-weighted", "xl", &[], PromptSyntax::Weighted),
];

fn embedding(name: &str) -> PathBuf {
    golden_png("embedded")
        .with_file_name("embeddings")
        .join(name)
}

fn embeddings(names: &[&str]) -> Vec<EmbeddingFile> {
    let parse = |name: &&str| embedding(name).to_str().unwrap().parse().unwrap();
    names.iter().map(parse).collect()
}

/// With all embeddings.
fn with(journey: Journey, names: &[&str]) -> Journey {
    let files = names.iter();
    files.fold(journey, |journey, name| {
        journey.with_more("--embedding", embedding(name))
    })
}

fn pipeline(model: &str, names: &[&str]) -> Pipeline {
    let pipeline = Pipeline::open(&model_dir(model), None, &[], &OpenDevice::cpu().device);
    pipeline
        .unwrap()
        .with_embeddings(&embeddings(names))
        .unwrap()
}

fn prompt(golden: &Golden, syntax: PromptSyntax) -> Prompt {
    let text = |key: &str| golden.case()[key].as_str().map(str::to_owned);
    Prompt {
        text: text("prompt").unwrap(),
        options: PromptOptions {
            negative_prompt: text("negative_prompt"),
            syntax,
            ..PromptOptions::default()
        },
    }
}

#[test]
fn what_text_encoders_make_of_them_is_that_of_the_reference() {
    for (name, model, names, syntax) in CASES {
        let (golden, pipeline) = (Golden::load(name), pipeline(model, names));
        let sampling = pipeline.sampling(1, Some(5.0));
        let shape = pipeline.latent_shape(None, None).unwrap();
        let told = pipeline.encode(&prompt(&golden, syntax), &sampling, shape);
        let told = told.unwrap();
        golden.check("text.context", told.context);
        if let Some(added) = told.added {
            golden.check("text.pooled", added.pooled);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pictures_are_those_of_the_reference_whole_and_cut() {
    for (name, _, names, syntax) in CASES {
        let golden = Golden::load(name);
        let journey = with(Journey::seeded(&golden), names);
        let want = Png::read(&golden_png(name));
        let apart = |png: Png| psnr(&png.values(), &want.values(), 255.0);
        let whole = journey.go().await.unwrap();
        let decibels = apart(whole.png());
        println!("{name}: PNG against diffusers {decibels:.1} dB");
        assert!(decibels >= 60.0, "{name}: {decibels:.1} dB");
        let shared = journey.clone().on_resident_strips(2).with("--wire", "f32");
        let shared = shared.with("--workers-prompt", "shared");
        for cut in [
            journey.clone().over_local_workers(2),
            journey.clone().on_resident_strips(2).with("--wire", "f32"),
            shared,
        ] {
            let cut = cut.go().await.unwrap();
            assert!(cut.latents() == whole.latents(), "{name}: cut");
        }
        // Masks are drawn anew each time: by fewer bits one picture in many is below.
        let blind = journey.clone().by_shares(2);
        let blind = blind.with("--share-bits", "quality").go().await.unwrap();
        let blind = apart(blind.png());
        assert!(blind >= 45.0, "{name}: blind: {blind:.1} dB");
        // Whoever takes no notice makes another picture.
        let ignorant = match syntax {
            PromptSyntax::Plain => Journey::seeded(&golden),
            _ => journey.with("--prompt-syntax", "plain"),
        };
        let ignorant = apart(ignorant.go().await.unwrap().png());
        println!("{name}: ignored {ignorant:.1} dB");
        assert!(ignorant < 40.0, "{name}: ignored: {ignorant:.1} dB");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn embeddings_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let pickle = folder.path().join("old.pt");
    std::fs::write(&pickle, b"anything").unwrap();
    let garbled = folder.path().join("garbled.safetensors");
    std::fs::write(&garbled, b"anything").unwrap();
    let path = |name: &str| embedding(name).display().to_string();
    for (model, files, named) in [
        ("xl", vec![path("toy.safetensors")], "two text encoders"),
        ("sd1", vec![path("pair.safetensors")], "the model has one"),
        (
            "sd1",
            vec![path("toy.safetensors:red")],
            "\"red\" is a token already",
        ),
        (
            "sd1",
            vec![path("toy.safetensors"); 2],
            "\"<toy>\" is a token already",
        ),
        (
            "sd1",
            vec![path("toy.safetensors"), path("mood-7.safetensors:<TOY>_2")],
            "\"<TOY>_2\" is a token already",
        ),
        ("sd1", vec![pickle.display().to_string()], "may run code"),
        (
            "sd1",
            vec![garbled.display().to_string()],
            "garbled.safetensors",
        ),
        ("sd1", vec![path("none.safetensors")], "none.safetensors"),
    ] {
        let golden = Golden::load(model);
        let journey = files
            .into_iter()
            .fold(Journey::of(&golden, &model_dir(model)), |j, file| {
                j.with_more("--embedding", file)
            });
        let error = journey.go().await.err().unwrap();
        assert!(error.contains(named), "{named}: {error}");
    }
}

#[test]
fn an_embedding_that_no_prompt_calls_is_named() {
    let pipeline = pipeline("sd1", &["toy.safetensors", "mood-7.safetensors"]);
    let unused = |text: &str, negative: Option<&str>, syntax| {
        let prompt = Prompt {
            text: text.into(),
            options: PromptOptions {
                negative_prompt: negative.map(str::to_owned),
                syntax,
                ..PromptOptions::default()
            },
        };
        pipeline.unused_embeddings(&prompt).unwrap().join(" ")
    };
    let (plain, long) = (PromptSyntax::Plain, PromptSyntax::Long);
    assert_eq!(unused("a toy", None, plain), "<toy> mood-7");
    assert_eq!(unused("a <toy>", None, plain), "mood-7");
    assert_eq!(unused("a <toy>", Some("mood-7"), plain), "");
    // What is cut off is not called.
    let late = format!("{}<toy>", "a ".repeat(80));
    assert_eq!(unused(&late, Some("mood-7"), plain), "<toy>");
    assert_eq!(unused(&late, Some("mood-7"), long), "");
    assert_eq!(
        unused("(<toy>:1.2)", Some("[mood-7]"), PromptSyntax::Weighted),
        ""
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prompt_of_one_chunk_is_the_same_plainly_and_at_length() {
    let golden = Golden::load("sd2");
    let journey = Journey::golden(&golden);
    let plain = journey.go().await.unwrap();
    for syntax in ["long", "weighted"] {
        let same = journey.clone().with("--prompt-syntax", syntax);
        assert!(
            same.go().await.unwrap().latents() == plain.latents(),
            "{syntax}"
        );
    }
    let long = journey.clone().asking(&"a red circle ".repeat(40));
    let cut_off = long.go().await.unwrap();
    let whole = long
        .clone()
        .with("--prompt-syntax", "long")
        .go()
        .await
        .unwrap();
    assert!(whole.latents() != cut_off.latents());
    assert_eq!(whole.png().text("prompt_syntax"), Some("long"));
    // More than workers take, and a weight that is none.
    let too_long = journey.clone().asking(&"a red circle ".repeat(400));
    let error = too_long.with("--prompt-syntax", "long").go().await;
    let error = error.err().unwrap();
    assert!(
        error.contains("16 chunks of 77 tokens, at most 13"),
        "{error}"
    );
    let heavy = journey
        .asking("a (cat:5000)")
        .with("--prompt-syntax", "weighted");
    let error = heavy.go().await.err().unwrap();
    assert!(error.contains("\"cat\" has a weight of 5000"), "{error}");
}

fn assignments(
    prompt: placement::Prompt,
    tokens: usize,
) -> Vec<lacuna_protocol::exchange::Assignment> {
    let pipeline = pipeline("sd1", &[]);
    let unet = pipeline.unet();
    let placement = Placement {
        prompt,
        ..Placement::default()
    };
    let sizes = Sizes {
        latents: [2, 8, 8],
        levels: unet.levels(),
        tokens,
    };
    places::assignments(unet, &Layout::new(placement, true, &sizes), 1).unwrap()
}

#[test]
fn who_is_not_given_the_prompt_is_not_told_its_length() {
    for (prompt, told) in [
        (placement::Prompt::Hidden, 77),
        (placement::Prompt::Shared, 231),
    ] {
        for assignment in assignments(prompt, 231) {
            assert_eq!(assignment.tokens, told, "{prompt:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_takes_long_prompts_and_no_endless_ones() {
    let worker = RunningWorker::start("sd1", &Options::default()).await;
    let caller = Caller::new(&worker);
    let model = caller.info().await.models[0].digest.clone();
    let open = async |tokens| {
        let body = OpenSession {
            protocol: PROTOCOL,
            model: model.clone(),
            kind: SessionKind::Strip(assignments(placement::Prompt::Shared, tokens).remove(0)),
            picture: None,
        };
        Caller::send(caller.request(Method::POST, "v1/sessions").json(&body)).await
    };
    assert_eq!(open(MOST_PROMPT_TOKENS).await.status, StatusCode::CREATED);
    for tokens in [MOST_PROMPT_TOKENS + 1, usize::MAX, 0] {
        let refusal = open(tokens).await.refusal(422);
        assert!(refusal.contains("tokens"), "{refusal}");
    }
}
