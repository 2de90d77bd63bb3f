//! Whose numbers are wrong is named where they are looked at, and who computes well never is. (Shares: `blind.rs`.)

use axum::body::Bytes;
use lacuna_wire::{HostTensor, Message, Payload};
use lacuna_worker::Options;
use serde_json::Value;
use tests::bad_workers::{MIDDLE, MODEL, assert_names, journey};
use tests::journey::Journey;
use tests::workers::{RunningWorker, worker_tampering_at};

/// The answer with its features a tenth larger.
fn lie(reply: Bytes) -> Vec<u8> {
    let mut message = Message::<Value>::decode(&reply).unwrap();
    for payload in message.tensors.values_mut() {
        if let Payload::F32(tensor) = payload {
            let data = tensor.data.iter().map(|x| 1.1 * x).collect();
            *payload = HostTensor::new(tensor.shape.clone(), data).unwrap().into();
        }
    }
    message.encode().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_wrong_numbers_is_named_where_they_are_looked_at() {
    for scheme in ["resident", "ppidm"] {
        let good = RunningWorker::start(MODEL, &Options::default()).await;
        let bad = worker_tampering_at(MODEL, |run| run >= MIDDLE, lie).await;
        let run = journey(scheme, &[(&good.url, None), (&bad, None)]);
        // Nobody sees it otherwise.
        run.go().await.unwrap();
        let error = run.clone().with("--verify", "1").go().await;
        let error = error.err().expect("a lie is found");
        assert_names(&error, &[&bad, "answered wrong numbers"]);
        assert!(!error.contains(&good.url), "{error}");
        good.is_left().await;
        // Some of it is looked at, and a liar that goes on is found soon: not once in 2^-50 runs later than this.
        if scheme == "ppidm" {
            let error = run.with("--verify", "0.5").go().await;
            assert_names(&error.err().expect("a lie is found"), &[&bad]);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_answers_right_is_never_blamed_and_the_picture_is_the_same() {
    let [first, second] = [
        RunningWorker::start(MODEL, &Options::default()).await,
        RunningWorker::start(MODEL, &Options::default()).await,
    ];
    let all = |scheme: &str, flags: &str| -> Journey {
        let workers = [(&*first.url, None), (&*second.url, None)];
        journey(scheme, &workers).with_all(flags)
    };
    for run in [
        all("ppidm", ""),
        all("ppidm", "--groupnorm local"),
        all("resident", "--wire f32"),
        all("resident", "--wire f16 --lanes true"),
        all("resident", "--wire bf16 --self-attention fused"),
        all("resident", "--wire f16 --self-attention tiled"),
        // What stays from the first call on.
        all(
            "resident",
            "--wire f16 --workers-prompt shared --self-attention tokens",
        ),
    ] {
        let want = run.go().await.unwrap();
        let checked = run.clone().with("--verify", "1").go().await.unwrap();
        // Tiles are hidden by other rotations every time, and round otherwise.
        let db = checked.latents_psnr(&want);
        assert!(db > 40.0, "{db}");
        // A part of the calls, too.
        run.with("--verify", "0.5").go().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn codes_of_numbers_are_not_compared() {
    for wire in ["int8", "delta8", "delta4"] {
        let run = journey("resident", &[])
            .with("--wire", wire)
            .with("--verify", "1");
        let error = run.go().await.err().expect("a refusal");
        assert_names(&error, &["--verify", "f32, f16 and bf16"]);
    }
}
