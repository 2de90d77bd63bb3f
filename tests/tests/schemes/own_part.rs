//! The user's own part of the U-Net: no more of it is loaded than the setting needs, and that is enough.

use lacuna_model::layers::Parameter;
use lacuna_model::unet::{UNet, UNetConfig};
use lacuna_model::weights;
use lacuna_orchestrator::schemes::{Setting, Sizes, UserParameters};
use lacuna_worker::Options;
use safetensors::Dtype;
use tests::golden::{Golden, MODELS, model_dir, repository};
use tests::journey::Journey;
use tests::model_copy::ModelCopy;
use tests::workers::{RunningWorker, dead_urls, fleet_file};

const ATTENTIONS: [&str; 6] = [
    "paired",
    "fused",
    "tokens",
    "qkv",
    "broadcast",
    "broadcast,qkv,fused",
];
const KNOWN: [&str; 2] = ["hidden", "shared"];

/// Every setting with workers, as scheme, self-attention, and whether prompt and latents are known.
fn settings() -> impl Iterator<Item = [&'static str; 3]> {
    let resident = ATTENTIONS
        .into_iter()
        .flat_map(|attention| KNOWN.map(|prompt| ["resident", attention, prompt]));
    resident.chain([["ppidm", "paired", "hidden"]])
}

/// Workers in this process make their orchestrator hold the whole U-Net; with workers elsewhere it has its
/// part alone, and the picture is the same to the last bit.
#[tokio::test(flavor = "multi_thread")]
async fn the_part_makes_the_picture_that_the_whole_makes() {
    for name in MODELS {
        let options = Options::default();
        let workers = [
            RunningWorker::start(name, &options).await,
            RunningWorker::start(name, &options).await,
        ];
        let urls = workers.each_ref().map(|w| (w.url.as_str(), None));
        let journey = Journey::golden(&Golden::load(name)).with("--steps", "2");
        let elsewhere = fleet_file(&journey.file(""), &urls);
        for [scheme, attention, prompt] in settings() {
            // Workers elsewhere would take two lanes by default, workers here one.
            let journey = journey
                .clone()
                .with("--scheme", scheme)
                .with("--lanes", "true");
            let journey = journey.with("--self-attention", attention);
            let journey = journey.with("--workers-prompt", prompt);
            let journey = journey.with("--workers-latents", prompt);
            let whole = journey.clone().with("--local-workers", "2").go().await;
            let part = journey.with("--workers", &elsewhere).go().await;
            let (whole, part) = (whole.unwrap(), part.unwrap());
            let case = format!("{name}: {scheme}, {attention}, {prompt}");
            assert!(part.latents() == whole.latents(), "{case}");
            assert!(part.png().rgb == whole.png().rgb, "{case}");
        }
    }
}

fn unet(model: &std::path::Path) -> UNet {
    UNetConfig::from_file(&model.join("unet/config.json"))
        .unwrap()
        .build()
}

fn user_parameters(unet: &UNet, [scheme, attention, prompt]: [&str; 3]) -> UserParameters {
    let options = [
        ("self-attention", attention),
        ("workers-prompt", prompt),
        ("workers-latents", prompt),
    ];
    let setting = Setting {
        scheme: tests::scheme::scheme(scheme, &options),
        sizes: Sizes {
            latents: [2, 64, 64],
            levels: unet.levels(),
            tokens: 77,
        },
        adapted: false,
    };
    setting.user_parameters(unet).unwrap()
}

fn values(parameters: &[Parameter]) -> usize {
    parameters.iter().map(Parameter::values).sum()
}

/// Counted by hand from SD 1.5's widths: sixteen transformers, of 320, 640 and 1280 channels.
#[test]
fn each_side_of_sd15_has_so_many_parameters() {
    let widths = [[320; 5], [640; 5], [1280; 5]];
    let widths = || widths.iter().flatten().chain(&[1280]);
    let each = |of: fn(usize) -> usize| widths().map(|c| of(*c)).sum::<usize>();
    let time = 320 * 1280 + 1280 + 1280 * 1280 + 1280;
    let attention = each(|c| 4 * c * c + c);
    let prompt_keys = each(|c| 2 * 768 * c);
    let both_with_norms = each(|c| 6 * c * c + 6 * c);
    let entry = each(|c| c * c + 3 * c);
    let first_and_last = (9 * 4 * 320 + 320) + 2 * 320 + (9 * 320 * 4 + 4);

    let unet = unet(&repository().join("configs/models/sd15"));
    // What stays for a whole picture, and what makes the prompt's keys and values before its first call.
    for (setting, held, once) in [
        (["local", "paired", "hidden"], 859_520_964, 0),
        (
            ["resident", "paired", "hidden"],
            time + both_with_norms,
            prompt_keys,
        ),
        (
            ["resident", "paired", "shared"],
            time + both_with_norms,
            prompt_keys,
        ),
        (
            ["resident", "fused", "hidden"],
            time + both_with_norms + entry,
            prompt_keys,
        ),
        (
            ["resident", "tokens", "hidden"],
            time + attention,
            prompt_keys,
        ),
        (["resident", "tokens", "shared"], time + attention, 0),
        (["resident", "qkv", "hidden"], time, prompt_keys),
        (["resident", "qkv", "shared"], time, 0),
        (["resident", "broadcast", "hidden"], time, prompt_keys),
        (["resident", "broadcast", "shared"], time, 0),
        // All but the 541 million of the 3x3 convolutions behind the first.
        (
            ["ppidm", "paired", "hidden"],
            318_484_480 - prompt_keys,
            prompt_keys,
        ),
    ] {
        let ends = match setting {
            ["resident", _, "hidden"] => first_and_last,
            _ => 0,
        };
        let got = user_parameters(&unet, setting);
        assert_eq!(values(&got.held), held + ends, "{setting:?}");
        assert_eq!(values(&got.of_prompt), once, "{setting:?}");
    }
    assert_eq!(time + both_with_norms + prompt_keys, 95_637_120);
}

#[test]
fn the_walk_over_shapes_names_every_layer_that_has_parameters() {
    for model in MODELS.map(model_dir).iter().chain(&[
        repository().join("configs/models/sd15"),
        repository().join("configs/models/sdxl"),
    ]) {
        let unet = unet(model);
        let operations = lacuna_model::survey::survey(&unet, [2, 64, 64], 77).unwrap();
        let named: std::collections::HashSet<&str> =
            operations.iter().map(|o| o.layer.as_str()).collect();
        for parameter in weights::list(&unet) {
            assert!(named.contains(parameter.layer()), "{parameter:?}");
        }
    }
}

/// What is loaded late or never was checked before: the dead worker is not even talked to.
#[tokio::test(flavor = "multi_thread")]
async fn bad_files_are_refused_before_anything_is_sent() {
    let dead = dead_urls::<2>().await;
    let journey = |copy: &ModelCopy| {
        let journey = Journey::golden(&Golden::load("odd")).with("--model", copy.path());
        let workers = dead.each_ref().map(|url| (url.as_str(), None));
        let fleet = fleet_file(&journey.file(""), &workers);
        journey
            .with("--scheme", "resident")
            .with("--workers", fleet)
    };
    let error = async |copy: &ModelCopy| journey(copy).go().await.err().expect("a failure");
    let unet = unet(&model_dir("odd"));
    let UserParameters { held, of_prompt } =
        user_parameters(&unet, ["resident", "paired", "hidden"]);
    let mut others = weights::list(&unet);
    others.retain(|parameter| !held.contains(parameter) && !of_prompt.contains(parameter));

    let whole = ModelCopy::of("odd");
    assert!(error(&whole).await.contains("does not answer"));
    let decoder = "decoder.conv_in.weight";
    let last = of_prompt.last().unwrap();
    for (part, name) in [
        ("vae", decoder),
        ("unet", &held[0].name),
        ("unet", &last.name),
    ] {
        let file = format!("{part}/diffusion_pytorch_model.safetensors");
        let copy = ModelCopy::of("odd");
        copy.change_tensors(&file, |tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            assert_eq!(tensor.dtype, Dtype::F32);
            tensor.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
        let error = error(&copy).await;
        assert!(
            error.contains(name) && error.contains("not finite"),
            "{error}"
        );
    }
    // What only workers compute must still be there, and of the right shape.
    let name = others[0].name.as_str();
    let file = "unet/diffusion_pytorch_model.safetensors";
    let copy = ModelCopy::of("odd");
    copy.change_tensors(file, |tensors| drop(tensors.remove(name)));
    let missing = error(&copy).await;
    assert!(
        missing.contains(name) && missing.contains("missing"),
        "{missing}"
    );
    let copy = ModelCopy::of("odd");
    copy.change_tensors(file, |tensors| {
        tensors.get_mut(name).unwrap().shape.insert(0, 1);
    });
    let shape = error(&copy).await;
    assert!(
        shape.contains(name) && shape.contains("has shape"),
        "{shape}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn every_finished_picture_of_several_is_written_and_alike() {
    let options = Options::default();
    let worker = RunningWorker::start("sd1", &options).await;
    let journey = Journey::seeded(&Golden::load("sd1")).with("--steps", "2");
    let fleet = fleet_file(&journey.file(""), &[(worker.url.as_str(), None)]);
    let local = journey.clone().with("--count", "2").go().await.unwrap();
    let journey = journey.with("--scheme", "resident").with("--count", "2");
    let several = journey.with("--workers", fleet).go().await.unwrap();
    assert_eq!(several.names(), local.names());
    for name in several.names().iter().filter(|n| n.ends_with(".png")) {
        let [a, b] = [&several, &local].map(|files| tests::journey::Png::read(&files.path(name)));
        assert!(a.difference(&b).0 <= 1, "{name}");
    }
    #[cfg(target_os = "linux")]
    assert!(several.report()["peak_memory"].as_u64().unwrap() > 1 << 20);
}
