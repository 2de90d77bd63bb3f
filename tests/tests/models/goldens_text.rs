//! Tokenizer and text encoder against the reference library.

use burn::tensor::Device;
use lacuna_model::host::OnDevice;
use lacuna_orchestrator::text::{
    Asked, ClipTextEncoder, ClipTokenizer, Encoded, OwnTokens, Wanted, encode_stored,
};
use lacuna_wire::HostTensor;
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
fn layer_by_layer_is_all_at_once() {
    let device = Device::flex();
    let folder = model_dir("sd1").join("text_encoder");
    let (loaded, stored) = (
        ClipTextEncoder::load(&folder, None, &device).unwrap(),
        ClipTextEncoder::open(&folder, None).unwrap(),
    );
    let pooling = ClipTextEncoder::open_pooling(&model_dir("xl").join("text_encoder_2"), None);
    let pooling = pooling.unwrap();
    let deepest = stored.layers().depth();
    let asked = |prompts: &[Vec<u32>], wanted| Asked {
        prompts: prompts.to_vec(),
        wanted,
    };
    let own = OwnTokens::default();
    let all = [
        asked(&[vec![1, 2, 3], vec![4, 5, 6]], Wanted::Normalised(1)),
        asked(&[vec![7; 9]], Wanted::Normalised(0)),
        asked(&[vec![8; 2]], Wanted::Penultimate(0)),
        asked(&[vec![9; 2]], Wanted::Normalised(deepest)),
    ];
    let values = |of: Encoded| {
        let pooled = of
            .pooled
            .map(|pooled| HostTensor::from_device(pooled).unwrap());
        (HostTensor::from_device(of.states).unwrap(), pooled)
    };
    let got = encode_stored(&stored, &own, &all, &device).unwrap();
    for (got, Asked { prompts, wanted }) in got.into_iter().zip(&all) {
        let want = loaded.encode(prompts, *wanted).unwrap();
        assert_eq!(values(got), values(want), "{wanted:?}");
    }
    // Pooled, and with a token of one's own, whose vector is the fourth of the vocabulary's.
    let width = pooling.layers().width();
    let table = pooling.read("embeddings.token_embedding.weight").unwrap();
    let fourth = table.data[4 * width..][..width].to_vec();
    let mut own = OwnTokens::default();
    own.add(&[0], &HostTensor::new([1, width], fourth).unwrap());
    let called = [vec![1, 2, 3], vec![0, 5, 6]];
    let together = [
        all[1].clone(),
        asked(&called, all[0].wanted),
        all[2].clone(),
    ];
    let got = encode_stored(&pooling, &own, &together, &device).unwrap();
    for (got, one) in got.into_iter().zip([&all[1], &all[0], &all[2]]) {
        let alone = encode_stored(&pooling, &own, std::slice::from_ref(one), &device).unwrap();
        let (got, alone) = (values(got), alone.into_iter().map(values).next().unwrap());
        assert!(got.1.is_some());
        assert_eq!(got, alone);
    }
    assert!(
        encode_stored(&stored, &own, &[], &device)
            .unwrap()
            .is_empty()
    );
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
