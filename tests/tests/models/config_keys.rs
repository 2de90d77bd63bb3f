//! Every key of every config file, changed one by one: another picture, a refusal that names it, or a place
//! on the list of keys that are known to change nothing.

use clap::ValueEnum;
use lacuna_model::config::WithoutEffect;
use lacuna_model::unet;
use lacuna_orchestrator::schedulers::SchedulerKind;
use lacuna_orchestrator::{corrections, model, schedulers, text, vae};
use lacuna_wire::HostTensor;
use serde_json::{Map, Value, json};
use tests::golden::Golden;
use tests::journey::{Journey, Png};
use tests::model_copy::ModelCopy;

const UNET: &str = "unet/config.json";
const VAE: &str = "vae/config.json";
const TEXT: &str = "text_encoder/config.json";
const TOKENIZER: &str = "tokenizer/tokenizer_config.json";
const SCHEDULER: &str = "scheduler/scheduler_config.json";
const INDEX: &str = "model_index.json";
const SINGLE: &str = "DPMSolverSinglestepScheduler";

/// What a run comes to.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    Made { latents: HostTensor, rgb: Vec<u8> },
    Refused(String),
}

/// A change of one key, and what must be there beside it for the key to count.
struct Change {
    key: &'static str,
    value: Value,
    beside: Vec<(&'static str, Value)>,
    prompt: Option<String>,
}

fn change(key: &'static str, value: Value) -> Change {
    Change {
        key,
        value,
        beside: Vec::new(),
        prompt: None,
    }
}

impl Change {
    fn beside(mut self, key: &'static str, value: Value) -> Self {
        self.beside.push((key, value));
        self
    }

    fn asking(mut self, prompt: &str) -> Self {
        self.prompt = Some(prompt.into());
        self
    }
}

/// A model whose files are changed, and what changes nothing in them.
struct Bench<'a> {
    golden: &'a Golden,
    file: &'static str,
    /// Makes the unchanged model.
    base: Box<dyn Fn() -> ModelCopy>,
    without_effect: WithoutEffect,
    failures: Vec<String>,
}

impl<'a> Bench<'a> {
    fn new(
        golden: &'a Golden,
        file: &'static str,
        without_effect: WithoutEffect,
        prepare: impl Fn(&ModelCopy) + 'static,
    ) -> Self {
        let base = move || {
            let copy = ModelCopy::of("sd2");
            copy.set(UNET, "sample_size", json!(8));
            prepare(&copy);
            copy
        };
        Self {
            golden,
            file,
            base: Box::new(base),
            without_effect,
            failures: Vec::new(),
        }
    }

    fn copy(&self, keys: &[(&'static str, Value)]) -> ModelCopy {
        let copy = (self.base)();
        copy.change_json(self.file, |map| {
            for (key, value) in keys {
                map.insert((*key).into(), value.clone());
            }
        });
        copy
    }

    async fn run(&self, keys: &[(&'static str, Value)], prompt: Option<&str>) -> Outcome {
        let copy = self.copy(keys);
        let mut journey = Journey::of(self.golden, copy.path()).with("--steps", "6");
        if let Some(prompt) = prompt {
            journey = journey.asking(prompt);
        }
        match journey.go().await {
            Ok(files) => Outcome::Made {
                latents: files.latents(),
                rgb: Png::read(&files.path("pic.png")).rgb,
            },
            Err(error) => Outcome::Refused(error),
        }
    }

    /// Makes every change, and those on the list, and sees to it that all of `keys` were among them.
    async fn check(mut self, mut changes: Vec<Change>, keys: &[String]) -> Vec<String> {
        for (key, reason) in self.without_effect {
            assert!(reason.len() > 10, "{key}: {reason:?}");
            if changes.iter().all(|change| change.key != *key) {
                changes.push(change(key, json!(["odd", 7])));
            }
        }
        for key in keys {
            if changes.iter().all(|change| change.key != key) {
                self.failures.push(format!("{key}: nobody looks at it"));
            }
            // Whatever it is the number of.
            let huge = json!(1_000_000_000_000_000_000_u64);
            for value in [huge.clone(), json!([huge, huge, huge]), json!(-7)] {
                let key: &'static str = key.clone().leak();
                if let Outcome::Refused(error) = self.run(&[(key, value)], None).await
                    && (error.contains("panicked") || error.contains("overflow"))
                {
                    self.failures.push(format!("{key}: {error}"));
                }
            }
        }
        for change in changes {
            let mut beside = change.beside.clone();
            let prompt = change.prompt.as_deref();
            let before = self.run(&beside, prompt).await;
            beside.push((change.key, change.value.clone()));
            let after = self.run(&beside, prompt).await;
            if let Some(failure) = self.judge(&change, &before, &after) {
                self.failures.push(failure);
            }
        }
        let file = self.file;
        self.failures
            .iter()
            .map(|f| format!("{file}: {f}"))
            .collect()
    }

    fn judge(&self, change: &Change, before: &Outcome, after: &Outcome) -> Option<String> {
        let (key, value) = (change.key, &change.value);
        let on_list = |list: WithoutEffect| list.iter().any(|(listed, _)| *listed == key);
        let listed = on_list(self.without_effect) || on_list(corrections::OVERRULED);
        match (before, after) {
            (Outcome::Refused(error), _) => Some(format!("{key}: the model before: {error}")),
            (_, Outcome::Refused(error)) => {
                // A size that the weights do not have is told by the tensor.
                let sizes = ["has shape", "is missing", "do not fit", "sizes do not"];
                let named = error.contains(key) || sizes.iter().any(|size| error.contains(size));
                (!named).then(|| format!("{key} = {value}: refused as {error}"))
            }
            (before, after) if before != after => {
                let surprise = on_list(self.without_effect);
                surprise.then(|| format!("{key} = {value}: on the list, but it counts"))
            }
            _ => (!listed).then(|| format!("{key} = {value}: without effect, not on the list")),
        }
    }
}

fn keys_of(golden: &Golden, class: &str) -> Vec<String> {
    let keys = golden.case()["keys"][class].as_array().unwrap();
    keys.iter()
        .map(|key| key.as_str().unwrap().to_owned())
        .collect()
}

fn assert_none(failures: Vec<String>) {
    assert!(failures.is_empty(), "{failures:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_unet() {
    let golden = Golden::load("variations");
    let changes = vec![
        change("sample_size", json!(6)),
        change("_diffusers_version", json!("0.6.0")),
        change("in_channels", json!(5)),
        change("out_channels", json!(8)),
        change("center_input_sample", json!(true)),
        change("flip_sin_to_cos", json!(false)),
        change("freq_shift", json!(1)),
        change(
            "down_block_types",
            json!(["CrossAttnDownBlock2D", "DownBlock2D", "DownBlock2D"]),
        ),
        change("mid_block_type", json!(null)),
        change("mid_block_type", json!("UNetMidBlock2D")),
        change(
            "up_block_types",
            json!(["UpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"]),
        ),
        change("only_cross_attention", json!(true)),
        change("block_out_channels", json!([8, 16, 8])),
        change("layers_per_block", json!(3)),
        change("downsample_padding", json!(0)),
        change("mid_block_scale_factor", json!(2)),
        change("act_fn", json!("gelu")),
        change("norm_num_groups", json!(2)),
        change("norm_eps", json!(0.1)),
        change("cross_attention_dim", json!(16)),
        change("transformer_layers_per_block", json!(2)),
        change("reverse_transformer_layers_per_block", json!([1, 2, 1])),
        change("encoder_hid_dim", json!(8)),
        change("encoder_hid_dim_type", json!("text_proj")),
        change("attention_head_dim", json!(1)),
        change("num_attention_heads", json!(2)),
        change("dual_cross_attention", json!(true)),
        change("use_linear_projection", json!(false)),
        change("class_embed_type", json!("timestep")),
        change("addition_embed_type", json!("text")),
        change("addition_embed_type", json!("text_time"))
            .beside("addition_time_embed_dim", json!(8))
            .beside("projection_class_embeddings_input_dim", json!(80)),
        change("addition_time_embed_dim", json!(8)),
        change("projection_class_embeddings_input_dim", json!(80)),
        change("num_class_embeds", json!(10)),
        change("resnet_time_scale_shift", json!("scale_shift")),
        change("time_embedding_type", json!("fourier")),
        change("time_embedding_dim", json!(16)),
        change("time_embedding_act_fn", json!("silu")),
        change("timestep_post_act", json!("silu")),
        change("time_cond_proj_dim", json!(8)),
        change("conv_in_kernel", json!(5)),
        change("conv_out_kernel", json!(5)),
        change("attention_type", json!("gated")),
        change("class_embeddings_concat", json!(true)),
        change("quantization_config", json!({"bits": 4})),
    ];
    let keys = keys_of(&golden, "UNet2DConditionModel");
    let bench = Bench::new(&golden, UNET, unet::WITHOUT_EFFECT, |_| {});
    assert_none(bench.check(changes, &keys).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_autoencoder() {
    let golden = Golden::load("variations");
    let kinds = json!(["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]);
    let changes = vec![
        change("latents_mean", json!([0.5, 0.1, -0.2, 0.3]))
            .beside("latents_std", json!([2, 1, 1, 3])),
        change("latents_std", json!([2, 1, 1, 3])).beside("latents_mean", json!([0.5, 0, 0, 0])),
        change("in_channels", json!(4)),
        change("out_channels", json!(4)),
        change("down_block_types", kinds),
        change(
            "up_block_types",
            json!(["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]),
        ),
        change("block_out_channels", json!([8, 8])),
        change("layers_per_block", json!(2)),
        change("act_fn", json!("relu")),
        change("latent_channels", json!(8)),
        change("norm_num_groups", json!(2)),
        change("scaling_factor", json!(0.5)),
        change("use_quant_conv", json!(false)),
        change("use_post_quant_conv", json!(false)),
        change("mid_block_add_attention", json!(false)),
        change("quantization_config", json!({"bits": 4})),
    ];
    let keys = keys_of(&golden, "AutoencoderKL");
    let bench = Bench::new(&golden, VAE, vae::WITHOUT_EFFECT, |_| {});
    assert_none(bench.check(changes, &keys).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_text_encoder() {
    let golden = Golden::load("variations");
    let changes = vec![
        change("vocab_size", json!(600)),
        change("hidden_size", json!(16)),
        change("intermediate_size", json!(32)),
        change("num_hidden_layers", json!(1)),
        change("num_attention_heads", json!(2)),
        change("max_position_embeddings", json!(50)),
        change("hidden_act", json!("quick_gelu")),
        change("layer_norm_eps", json!(0.1)),
        change("model_type", json!("t5")),
        change("chunk_size_feed_forward", json!(2)),
        change("is_encoder_decoder", json!(true)),
        change("is_decoder", json!(true)),
        change("add_cross_attention", json!(true)),
        change("cross_attention_hidden_size", json!(8)),
        change("pruned_heads", json!({"0": [1]})),
        change("is_causal", json!(false)),
        change("use_attention_mask", json!(true)),
        change("quantization_config", json!({"bits": 4})),
        change("text_config_dict", json!({"num_hidden_layers": 1})),
    ];
    let keys = keys_of(&golden, "CLIPTextConfig");
    let bench = Bench::new(&golden, TEXT, text::CLIP_WITHOUT_EFFECT, |_| {});
    assert_none(bench.check(changes, &keys).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_tokenizer() {
    let golden = Golden::load("variations");
    let long = "a large red circle above a small blue square, ".repeat(12) + "on yellow";
    let of_token = |key, prompt: &str| change(key, json!("<new>")).asking(prompt);
    let prompt = "a large <new> square";
    let listed = json!({"674": {"content": "<new>"}});
    let changes = vec![
        change("bos_token", json!("!")),
        change("eos_token", json!("!")),
        change("pad_token", json!("<|endoftext|>")),
        of_token("unk_token", prompt),
        of_token("sep_token", prompt),
        of_token("cls_token", prompt),
        of_token("mask_token", prompt),
        of_token("image_token", prompt),
        change("extra_special_tokens", json!(["<new>"])).asking(prompt),
        change("additional_special_tokens", json!(["<new>"])).asking(prompt),
        change("added_tokens_decoder", listed).asking(prompt),
        change("model_max_length", json!(20)).asking(&long),
        change("max_len", json!(20)).asking(&long),
        change("model_max_length", json!(78)),
        change("padding_side", json!("left")),
        change("truncation_side", json!("left")).asking(&long),
        change("truncation_side", json!(null)),
        change("split_special_tokens", json!(true)).asking("a <|endoftext|> square"),
        change("tokenizer_class", json!("T5Tokenizer")),
        change("init_inputs", json!([1])),
        change("merges", json!(["a b"])),
        change("vocab", json!({"a": 1})),
        change("gguf_file", json!("x.gguf")),
        change("tokenizer_object", json!({})),
        change("tokenizer_padding", json!({"direction": "left"})),
        change("tokenizer_truncation", json!({"direction": "left"})),
    ];
    let bench = Bench::new(&golden, TOKENIZER, text::TOKENIZER_WITHOUT_EFFECT, |copy| {
        // The older file would overrule this one.
        copy.remove("tokenizer/special_tokens_map.json");
        copy.set(TOKENIZER, "model_max_length", Value::Null);
        let rows: Vec<usize> = (0..674).chain([600]).collect();
        let weights = "text_encoder/model.safetensors";
        copy.keep_rows(weights, "embeddings.token_embedding.weight", &rows);
        copy.set(TEXT, "vocab_size", json!(675));
    });
    let read = std::fs::read(bench.copy(&[]).path().join(TOKENIZER)).unwrap();
    let present: Map<String, Value> = serde_json::from_slice(&read).unwrap();
    let keys: Vec<String> = present.into_iter().map(|(key, _)| key).collect();
    assert_none(bench.check(changes, &keys).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_index() {
    let golden = Golden::load("variations");
    let other = |class: &str| json!(["mine", class]);
    let mut changes = vec![
        change("_class_name", json!("FluxPipeline")),
        change("scheduler", json!(["diffusers", "EulerDiscreteScheduler"])),
        change("scheduler", other("DDIMScheduler")),
        change("unet", other("UNet2DConditionModel")),
        change("vae", other("AutoencoderKL")),
        change("text_encoder", other("CLIPTextModel")),
        change("tokenizer", other("CLIPTokenizer")),
    ];
    // The class is named, not the key.
    let mut failures = Vec::new();
    let keys = keys_of(&golden, "StableDiffusionPipeline");
    let bench = Bench::new(&golden, INDEX, model::dir::WITHOUT_EFFECT, |_| {});
    let class = changes.remove(0);
    match bench.run(&[(class.key, class.value)], None).await {
        Outcome::Refused(error) if error.contains("FluxPipeline") => {}
        outcome => failures.push(format!("{outcome:?}")),
    }
    failures.extend(bench.check(changes, &keys).await);
    assert_none(failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_every_scheduler() {
    let golden = Golden::load("variations");
    let mut failures = Vec::new();
    for &kind in SchedulerKind::value_variants() {
        let class = kind.class();
        if SchedulerKind::from_class_name(class).unwrap() != kind {
            continue;
        }
        let keys = keys_of(&golden, class);
        let karras = |change: Change| change.beside("use_karras_sigmas", json!(true));
        let third = |change: Change| change.beside("solver_order", json!(3));
        let last = |change: Change| change.beside("final_sigmas_type", json!("sigma_min"));
        let threshold = |change: Change| {
            let change = change.beside("thresholding", json!(true));
            match change.key {
                "sample_max_value" => change,
                _ => change.beside("sample_max_value", json!(2.0)),
            }
        };
        let solver = match class {
            "UniPCMultistepScheduler" => last(change("solver_type", json!("bh1"))),
            "DEISMultistepScheduler" => change("solver_type", json!("rk4")),
            _ => change("solver_type", json!("heun")),
        };
        let changes = vec![
            change("num_train_timesteps", json!(900)),
            change("beta_start", json!(0.002)),
            change("beta_end", json!(0.03)),
            change("beta_schedule", json!("linear")),
            change("trained_betas", json!(vec![0.004; 1000])),
            change("rescale_betas_zero_snr", json!(true)),
            change("prediction_type", json!("epsilon")),
            change("timestep_spacing", json!("trailing")),
            change("steps_offset", json!(7)),
            change("clip_sample", json!(true)),
            change("clip_sample_range", json!(0.1)),
            change("set_alpha_to_one", json!(class != "DDIMScheduler")),
            change("skip_prk_steps", json!(false)),
            change("thresholding", json!(true)),
            threshold(change("dynamic_thresholding_ratio", json!(0.5))),
            threshold(change("sample_max_value", json!(2.0))),
            change("use_karras_sigmas", json!(true)),
            change("use_exponential_sigmas", json!(true)),
            change("use_beta_sigmas", json!(true)),
            karras(change("sigma_min", json!(0.3))),
            karras(change("sigma_max", json!(9.0))),
            change("final_sigmas_type", json!("sigma_min")),
            change("interpolation_type", json!("log_linear")),
            change("timestep_type", json!("continuous")),
            change("solver_order", json!(1)),
            change("algorithm_type", json!("sde-dpmsolver++")),
            solver,
            last(third(change("lower_order_final", json!(class == SINGLE)))),
            change("euler_at_final", json!(true))
                .beside("final_sigmas_type", json!("sigma_min"))
                .beside("lower_order_final", json!(false)),
            change("lambda_min_clipped", json!(-1.0)),
            change(
                "variance_type",
                json!(match kind {
                    SchedulerKind::Ddpm => "fixed_large",
                    _ => "learned",
                }),
            ),
            change("predict_x0", json!(false)),
            last(change("predict_x0", json!(false))),
            change("disable_corrector", json!([0, 1])),
            change("solver_p", json!({"_class_name": "DDIMScheduler"})),
            change("shift_terminal", json!(0.1)),
            change("original_inference_steps", json!(11)),
            change("timestep_scaling", json!(0.001)),
            change("use_lu_lambdas", json!(true)),
            change("use_flow_sigmas", json!(true)),
            change("use_dynamic_shifting", json!(true)),
        ];
        // Keys of other classes are ignored, whatever they say.
        let own = |change: &Change| keys.iter().any(|key| key == change.key);
        let changes: Vec<Change> = changes.into_iter().filter(own).collect();
        let unread = schedulers::UNREAD_BY_CLASS.iter();
        let unread = unread.filter(|(of, _)| *of == class);
        let unread = unread.flat_map(|(_, keys)| keys.iter());
        let own = |(key, _): &&(&str, &str)| keys.iter().any(|own| own == key);
        let common = schedulers::WITHOUT_EFFECT.iter().filter(own);
        let without_effect: Vec<_> = common.chain(unread).copied().collect();
        let bench = Bench::new(&golden, SCHEDULER, without_effect.leak(), move |copy| {
            let config = json!({
                "_class_name": class, "beta_start": 0.00085, "beta_end": 0.012, "skip_prk_steps": true,
                "beta_schedule": "scaled_linear", "prediction_type": "v_prediction",
            });
            copy.write(SCHEDULER, config.to_string());
            copy.set(INDEX, "scheduler", json!(["diffusers", class]));
        });
        let found = bench.check(changes, &keys).await;
        failures.extend(found.iter().map(|failure| format!("{class}: {failure}")));
    }
    assert_none(failures);
}
