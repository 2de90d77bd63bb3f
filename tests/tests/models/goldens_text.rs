//! Tokenizer and text encoder against the reference library.

use burn::tensor::Device;
use lacuna_orchestrator::text::{ClipTextEncoder, ClipTokenizer, Wanted};
use serde_json::Value;
use tests::golden::{Golden, MODELS, model_dir};

#[test]
fn token_ids_equal_the_reference() {
    for name in MODELS {
        let golden = Golden::load(name);
        let tokenizer = ClipTokenizer::load(&model_dir(name).join("tokenizer")).unwrap();
        let want = golden.integers("text.ids");
        let length = tokenizer.length();
        assert_eq!(want.shape, [golden.prompts().len(), length]);
        for (prompt, want) in golden.prompts().iter().zip(want.data.chunks(length)) {
            let want: Vec<u32> = want.iter().map(|id| *id as u32).collect();
            let got = tokenizer.encode(prompt).unwrap();
            assert_eq!(got, want, "{name}: {prompt:?}");
        }
    }
}

#[test]
fn embeddings_equal_the_reference() {
    for name in MODELS {
        let golden = Golden::load(name);
        let folder = model_dir(name);
        let tokenizer = ClipTokenizer::load(&folder.join("tokenizer")).unwrap();
        let encoder =
            ClipTextEncoder::load(&folder.join("text_encoder"), None, &Device::flex()).unwrap();
        let prompts = golden.prompts();
        let ids = |index: &Value| {
            let prompt = prompts[index.as_u64().unwrap() as usize];
            tokenizer.encode(prompt).unwrap()
        };
        let text = &golden.case()["text"];
        let embedded: Vec<_> = text["embedded"]
            .as_array()
            .unwrap()
            .iter()
            .map(ids)
            .collect();
        golden.check(
            "text.embeddings",
            encoder
                .encode(&embedded, Wanted::Normalised(0))
                .unwrap()
                .states,
        );
        let one = [ids(&text["penultimate"])];
        golden.check(
            "text.penultimate",
            encoder.encode(&one, Wanted::Normalised(1)).unwrap().states,
        );
    }
}

#[test]
fn prompts_that_do_not_fit_the_encoder_are_errors() {
    let folder = model_dir("sd1").join("text_encoder");
    let encoder = ClipTextEncoder::load(&folder, None, &Device::flex()).unwrap();
    let message = |prompts: &[Vec<u32>], clip_skip| {
        let result = encoder.encode(prompts, Wanted::Normalised(clip_skip));
        result.unwrap_err().to_string()
    };
    assert!(message(&[vec![5, 674]], 0).contains("token id 674"));
    assert!(message(&[vec![1; 78]], 0).contains("[78] tokens"));
    assert!(message(&[vec![1; 4], vec![1; 5]], 0).contains("[4, 5] tokens"));
    assert!(message(&[], 0).contains("[] tokens"));
    assert!(message(&[vec![1]], 4).contains("clip skip 4"));
}
