//! How published models vary, and how downloads break: each variation loads to the same numbers,
//! each breakage is an error that names the thing.

use burn::tensor::{Device, Tensor};
use lacuna_model::weights::Checkpoint;
use lacuna_orchestrator::model::dir::ModelDir;
use lacuna_orchestrator::pipeline::Pipeline;
use lacuna_orchestrator::text::{ClipTextEncoder, ClipTokenizer, Wanted};
use lacuna_orchestrator::vae::Vae;
use lacuna_wire::HostTensor;
use safetensors::Dtype;
use serde_json::{Value, json};
use tests::golden::{Golden, MODELS, model_dir};
use tests::model_copy::{ModelCopy, rename_tensors};

const TEXT: &str = "text_encoder/model.safetensors";
const VAE: &str = "vae/diffusion_pytorch_model.safetensors";

/// The text encoder of `copy` against the golden file of `name`.
fn check_text(name: &str, copy: &ModelCopy, variant: Option<&str>) {
    let golden = Golden::load(name);
    let tokenizer = ClipTokenizer::load(&copy.part("tokenizer")).unwrap();
    let encoder =
        ClipTextEncoder::load(&copy.part("text_encoder"), variant, &Device::flex()).unwrap();
    let prompts = golden.prompts();
    let ids: Vec<_> = (0..4)
        .map(|i| tokenizer.encode(prompts[i]).unwrap())
        .collect();
    golden.check(
        "text.embeddings",
        encoder.encode(&ids, Wanted::Normalised(0)).unwrap().states,
    );
}

/// The autoencoder of `copy` against the golden file of `name`.
fn check_vae(name: &str, copy: &ModelCopy) {
    check_vae_of(name, copy, None);
}

fn check_vae_of(name: &str, copy: &ModelCopy, variant: Option<&str>) {
    let golden = Golden::load(name);
    let device = Device::flex();
    let vae = Vae::load(&copy.part("vae"), variant, &device).unwrap();
    let picture = vae.decode(golden.tensor("vae.latents", &device)).unwrap();
    golden.check("vae.decoded", picture);
    let posterior = vae.encode(golden.tensor("vae.image", &device)).unwrap();
    let moments = Tensor::cat(vec![posterior.mean, posterior.log_variance], 1);
    golden.check("vae.moments", moments);
}

/// The tokenizer of `copy` against the golden file of `name`.
fn check_ids(name: &str, copy: &ModelCopy) {
    let golden = Golden::load(name);
    let tokenizer = ClipTokenizer::load(&copy.part("tokenizer")).unwrap();
    let want = &golden.integers("text.ids").data;
    let ids = golden
        .prompts()
        .into_iter()
        .flat_map(|prompt| tokenizer.encode(prompt).unwrap());
    let ids: Vec<i32> = ids.map(|id| id as i32).collect();
    assert_eq!(&ids, want, "{name}");
}

/// What loading the text encoder, the autoencoder or the tokenizer says.
fn error_of(copy: &ModelCopy, part: &str) -> String {
    fate_of(copy, part).expect("an error")
}

/// What is wrong with a part, if anything is.
fn fate_of(copy: &ModelCopy, part: &str) -> Option<String> {
    let (dir, device) = (copy.part(part), Device::flex());
    let error = match part {
        "text_encoder" => ClipTextEncoder::load(&dir, None, &device).err(),
        "vae" => Vae::load(&dir, None, &device).err(),
        _ => ClipTokenizer::load(&dir).err(),
    };
    error.map(|e| e.to_string())
}

#[track_caller]
fn assert_names(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn every_number_is_what_torch_makes_of_it() {
    let path = model_dir("").join("../number-types.safetensors");
    let file = Checkpoint::open_file(&path).unwrap();
    for (name, count) in [("e4m3fn", 254), ("e5m2", 248), ("f64", 64)] {
        let (read, want) = (file.read(name), file.read(&format!("{name}.f32")));
        let (read, want) = (read.unwrap(), want.unwrap());
        assert_eq!(read.shape, [count], "{name}");
        let bits = |tensor: &HostTensor| -> Vec<u32> {
            tensor.data.iter().map(|value| value.to_bits()).collect()
        };
        assert_eq!(bits(&read), bits(&want), "{name}");
    }
}

#[test]
fn the_tiny_models_open() {
    for name in MODELS {
        let model = ModelDir::open(&model_dir(name)).unwrap();
        assert!(model.scheduler_class.ends_with("Scheduler"));
        assert_eq!(model.vae, model_dir(name).join("vae"));
    }
}

#[test]
fn text_encoder_names_with_and_without_the_prefix() {
    let copy = ModelCopy::of("sd1");
    copy.change_tensors(TEXT, |tensors| {
        rename_tensors(tensors, |name| name.replacen("text_model.", "", 1));
        assert!(tensors.contains_key("embeddings.position_ids"));
    });
    check_text("sd1", &copy, None);
    let copy = ModelCopy::of("sd2");
    copy.change_tensors(TEXT, |tensors| {
        rename_tensors(tensors, |name| match name.strip_prefix("text_model.") {
            Some(_) => name.to_owned(),
            None => format!("text_model.{name}"),
        });
        // Of the class with a projection, which is not used here.
        let projection = tensors["text_model.final_layer_norm.weight"].clone();
        tensors.insert("text_projection.weight".into(), projection);
    });
    check_text("sd2", &copy, None);
}

#[test]
fn a_variant_is_found_by_name_or_when_it_is_the_only_one() {
    let copy = ModelCopy::of("sd1");
    copy.rename(TEXT, "text_encoder/model.fp16.safetensors");
    check_text("sd1", &copy, None);
    check_text("sd1", &copy, Some("fp16"));
    let dir = copy.part("text_encoder");
    let error = ClipTextEncoder::load(&dir, Some("bf16"), &Device::flex()).unwrap_err();
    assert_names(&error.to_string(), &["model.safetensors", "variant bf16"]);
}

#[test]
fn shards_are_found_by_their_index() {
    let copy = ModelCopy::of("odd");
    copy.shard("text_encoder", "model", 3);
    copy.shard("vae", "diffusion_pytorch_model", 2);
    check_text("odd", &copy, None);
    check_vae("odd", &copy);
    copy.remove("vae/diffusion_pytorch_model-00002-of-00002.safetensors");
    assert_names(
        &error_of(&copy, "vae"),
        &["diffusion_pytorch_model-00002-of-00002"],
    );
}

#[test]
fn old_attention_names_as_linear_and_as_convolution() {
    let old = |name: &str| {
        name.replace("to_q", "query")
            .replace("to_k", "key")
            .replace("to_v", "value")
            .replace("to_out.0", "proj_attn")
    };
    let copy = ModelCopy::of("odd");
    copy.change_tensors(VAE, |tensors| rename_tensors(tensors, old));
    check_vae("odd", &copy);
    copy.change_tensors(VAE, |tensors| {
        let attention = |name: &str| name.contains("attentions.0") && !name.contains("norm");
        for (name, tensor) in tensors.iter_mut() {
            if attention(name) && tensor.shape.len() == 2 {
                tensor.shape.extend([1, 1]);
            }
        }
    });
    check_vae("odd", &copy);
}

#[test]
fn a_tokenizer_in_one_file_or_in_two() {
    // The one-file form, with nothing beside it.
    let copy = ModelCopy::of("odd");
    copy.remove("tokenizer/tokenizer_config.json");
    check_ids("odd", &copy);
    // The two-file form, with nothing beside it.
    let copy = ModelCopy::of("sd1");
    copy.remove("tokenizer/tokenizer_config.json");
    copy.remove("tokenizer/special_tokens_map.json");
    check_ids("sd1", &copy);
    // One file made into two.
    let copy = ModelCopy::of("odd");
    let bytes = std::fs::read(copy.path().join("tokenizer/tokenizer.json")).unwrap();
    let whole: Value = serde_json::from_slice(&bytes).unwrap();
    let pairs = whole["model"]["merges"].as_array().unwrap().iter();
    let lines = pairs.map(|p| format!("{} {}\n", p[0].as_str().unwrap(), p[1].as_str().unwrap()));
    let merges = format!("#version: 0.2\n{}", lines.collect::<String>());
    copy.write("tokenizer/vocab.json", whole["model"]["vocab"].to_string());
    copy.write("tokenizer/merges.txt", &merges);
    copy.remove("tokenizer/tokenizer.json");
    check_ids("odd", &copy);
    // One file as it was written some years ago: a merge is one string.
    let mut older = whole.clone();
    older["model"]["merges"] = json!(merges.lines().skip(1).collect::<Vec<_>>());
    copy.write("tokenizer/tokenizer.json", older.to_string());
    copy.remove("tokenizer/vocab.json");
    check_ids("odd", &copy);
}

#[test]
fn special_tokens_are_found_in_either_file() {
    // The padding of SD 2.x changes every id behind the prompt's end.
    for file in ["tokenizer_config.json", "special_tokens_map.json"] {
        let copy = ModelCopy::of("sd2");
        copy.remove(&format!("tokenizer/{file}"));
        check_ids("sd2", &copy);
    }
    // The form of around 2023: every added token listed by id.
    let token = |content: &str| json!({"content": content, "normalized": false, "special": true});
    let copy = ModelCopy::of("sd2");
    let list =
        json!({"0": token("!"), "672": token("<|startoftext|>"), "673": token("<|endoftext|>")});
    copy.set(
        "tokenizer/tokenizer_config.json",
        "added_tokens_decoder",
        list,
    );
    check_ids("sd2", &copy);
}

#[test]
fn added_tokens_are_found_in_each_of_their_files() {
    let list = json!({"674": {"content": "<cat-toy>", "normalized": true}});
    let by_id = ModelCopy::of("sd1");
    by_id.set(
        "tokenizer/tokenizer_config.json",
        "added_tokens_decoder",
        list,
    );
    let by_name = ModelCopy::of("sd1");
    by_name.write("tokenizer/added_tokens.json", r#"{"<cat-toy>": 674}"#);
    for copy in [by_id, by_name] {
        let tokenizer = ClipTokenizer::load(&copy.part("tokenizer")).unwrap();
        let ids = tokenizer.encode("a<Cat-Toy>").unwrap();
        assert_eq!((ids[0], ids[2], ids[3]), (672, 674, 673));
    }
}

#[test]
fn garbled_tokenizer_files_are_named() {
    let copy = ModelCopy::of("odd");
    copy.truncate("tokenizer/tokenizer.json", 0.5);
    assert_names(&error_of(&copy, "tokenizer"), &["tokenizer.json"]);
    copy.remove("tokenizer/tokenizer.json");
    assert_names(&error_of(&copy, "tokenizer"), &["vocab.json"]);

    let copy = ModelCopy::of("sd1");
    copy.write("tokenizer/merges.txt", "#version: 0.2\ni n\nnonsense\n");
    assert_names(&error_of(&copy, "tokenizer"), &["merges.txt", "merge 2"]);
    // A merge to a token longer than any in the vocabulary.
    copy.write("tokenizer/merges.txt", "<|startoftext|> <|endoftext|>\n");
    assert_names(
        &error_of(&copy, "tokenizer"),
        &["<|startoftext|><|endoftext|>"],
    );
    copy.remove("tokenizer/merges.txt");
    assert_names(&error_of(&copy, "tokenizer"), &["merges.txt"]);

    for (key, value) in [
        ("tokenizer_class", json!("T5Tokenizer")),
        ("model_max_length", json!(1)),
    ] {
        let copy = ModelCopy::of("sd1");
        copy.set("tokenizer/tokenizer_config.json", key, value.clone());
        assert_names(&error_of(&copy, "tokenizer"), &[key]);
    }

    // A token gets the next id, as in the reference, for which the text encoder must have numbers.
    let copy = ModelCopy::of("sd1");
    let added = json!({"900": {"content": "<new>"}});
    copy.set(
        "tokenizer/tokenizer_config.json",
        "added_tokens_decoder",
        added,
    );
    let tokenizer = ClipTokenizer::load(&copy.part("tokenizer")).unwrap();
    let ids = tokenizer.encode("a <new> circle").unwrap();
    assert!(ids.contains(&674), "{ids:?}");
    let encoder = ClipTextEncoder::load(&copy.part("text_encoder"), None, &Device::flex());
    let encoded = encoder.unwrap().encode(&[ids], Wanted::Normalised(0));
    assert_names(&encoded.expect_err("an error").to_string(), &["674"]);

    // One that is what its file says needs the file, and one that puts start and end around a prompt.
    let load = |copy: &ModelCopy| {
        let loaded = ClipTokenizer::load_as_written(&copy.part("tokenizer"));
        loaded.err().map(|error| error.to_string())
    };
    let missing = load(&ModelCopy::of("sd1")).expect("an error");
    assert_names(&missing, &["tokenizer.json", "PreTrainedTokenizerFast"]);
    let copy = ModelCopy::of("odd");
    assert_eq!(load(&copy), None);
    copy.set_null("tokenizer/tokenizer.json", "post_processor");
    assert_names(&load(&copy).expect("an error"), &["post_processor"]);
}

#[test]
fn truncated_weights_are_named() {
    for (part, file) in [("text_encoder", TEXT), ("vae", VAE)] {
        for share in [0.0, 0.001, 0.1, 0.9] {
            let copy = ModelCopy::of("sd2");
            copy.truncate(file, share);
            assert_names(&error_of(&copy, part), &[file]);
        }
    }
}

#[test]
fn a_tensor_of_another_type_or_shape_or_name_is_named() {
    for (part, file, name) in [
        ("text_encoder", TEXT, "final_layer_norm.weight"),
        ("vae", VAE, "decoder.conv_in.weight"),
    ] {
        let copy = ModelCopy::of("odd");
        copy.change_tensors(file, |tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            tensor.dtype = Dtype::I64;
            tensor.data = tensor.data.repeat(2);
        });
        assert_names(&error_of(&copy, part), &[name, "I64"]);

        let copy = ModelCopy::of("odd");
        copy.change_tensors(file, |tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            tensor.shape = vec![tensor.shape.iter().product()];
            tensor.shape.push(1);
        });
        assert_names(&error_of(&copy, part), &[name, "has shape"]);

        let copy = ModelCopy::of("odd");
        copy.change_tensors(file, |tensors| {
            let tensor = tensors.remove(name).unwrap();
            tensors.insert("mystery.weight".into(), tensor);
        });
        assert_names(&error_of(&copy, part), &[name, "is missing"]);

        let copy = ModelCopy::of("odd");
        copy.change_tensors(file, |tensors| {
            let tensor = tensors[name].clone();
            tensors.insert("mystery.weight".into(), tensor);
        });
        assert_eq!(fate_of(&copy, part), None, "an unused tensor is a warning");

        let copy = ModelCopy::of("odd");
        copy.change_tensors(file, |tensors| {
            let tensor = tensors.get_mut(name).unwrap();
            tensor.data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        });
        assert_names(&error_of(&copy, part), &[name, "not finite"]);
    }
}

#[test]
fn an_unused_tensor_leaves_the_digest_as_it_is() {
    let open = |copy: &ModelCopy| Vae::open(&copy.part("vae"), None).unwrap();
    let copy = ModelCopy::of("sd1");
    let digest = open(&copy).digest().unwrap().to_owned();
    copy.change_tensors(VAE, |tensors| {
        let tensor = tensors["decoder.conv_in.weight"].clone();
        tensors.insert("mystery.weight".into(), tensor);
    });
    assert_eq!(open(&copy).digest().unwrap(), digest);
}

#[test]
fn a_variant_is_read_where_it_is_and_nowhere_else() {
    let copy = ModelCopy::of("sd1");
    copy.rename(TEXT, "text_encoder/model.fp16.safetensors");
    let open = |variant| Pipeline::open(copy.path(), variant, &[], &Device::flex()).map(drop);
    open(Some("fp16")).unwrap();
    let error = open(Some("bf16")).unwrap_err().to_string();
    assert_names(&error, &["--variant bf16", "no part"]);
    // Files of a variant that are no weights we read are not passed over for others.
    copy.write("vae/diffusion_pytorch_model.fp16.bin", "");
    let error = open(Some("fp16")).unwrap_err().to_string();
    assert_names(&error, &["vae", "variant fp16"]);
}

#[test]
fn shards_of_a_variant_are_found_by_either_name_of_their_index() {
    for index in ["index.fp16", "fp16.index"] {
        let copy = ModelCopy::of("odd");
        let stem = "vae/diffusion_pytorch_model";
        copy.add_shards("vae", "diffusion_pytorch_model", 2);
        copy.rename(
            &format!("{stem}.safetensors.index.json"),
            &format!("{stem}.safetensors.{index}.json"),
        );
        for i in 1..=2 {
            let shard = format!("{stem}-0000{i}-of-00002");
            copy.rename(
                &format!("{shard}.safetensors"),
                &format!("{shard}.fp16.safetensors"),
            );
        }
        let file = copy.path().join(format!("{stem}.safetensors.{index}.json"));
        let names = std::fs::read_to_string(&file).unwrap();
        std::fs::write(file, names.replace("2.safetensors", "2.fp16.safetensors")).unwrap();
        copy.scale_tensors(VAE, VAE, 0.5);
        check_vae_of("odd", &copy, Some("fp16"));
    }
}

#[test]
fn parts_that_do_not_fit_are_refused_when_they_are_opened() {
    let open = |copy: &ModelCopy| Pipeline::open(copy.path(), None, &[], &Device::flex()).map(drop);
    let copy = ModelCopy::of("sd1");
    copy.set(
        "tokenizer/tokenizer_config.json",
        "model_max_length",
        json!(78),
    );
    assert_names(
        &open(&copy).unwrap_err().to_string(),
        &["model_max_length is 78"],
    );
}
