//! Holds [`TorchRng`] to the numbers torch itself drew (`scripts/goldens/noise.py`).

use lacuna_orchestrator::noise::TorchRng;
use safetensors::SafeTensors;
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    seed: u64,
    sizes: Vec<usize>,
}

#[test]
fn draws_what_torch_draws() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/goldens/noise.safetensors"
    );
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let golden = &header.metadata().as_ref().unwrap()["golden"];
    let Golden { cases } = serde_json::from_str(golden).unwrap();
    let goldens = SafeTensors::deserialize(&bytes).unwrap();

    let mut worst = 0f32;
    for case in &cases {
        let mut rng = TorchRng::new(case.seed);
        for (draw, &size) in case.sizes.iter().enumerate() {
            let golden = goldens.tensor(&format!("{}.{draw}", case.name)).unwrap();
            let got = rng.randn(size);
            assert_eq!(golden.data().len(), 4 * got.len());
            for (i, (got, want)) in got.iter().zip(golden.data().chunks_exact(4)).enumerate() {
                let want = f32::from_le_bytes(want.try_into().unwrap());
                worst = worst.max((got - want).abs());
                assert!(
                    (got - want).abs() <= 1e-6,
                    "{} draw {draw} number {i}: {got} is not {want}",
                    case.name
                );
            }
        }
    }
    println!("largest difference from torch: {worst:e}");
}
