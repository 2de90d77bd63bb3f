//! Holds every step of every scheduler to `diffusers` (`scripts/goldens/schedulers.py`), and the
//! refusals to their names.

use lacuna_orchestrator::noise::TorchRng;
use lacuna_orchestrator::schedulers::{SchedulerConfig, SchedulerError, SchedulerKind, build};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    class: String,
    config: Value,
    steps: usize,
    eta: f32,
    seed: u64,
}

fn floats(goldens: &SafeTensors, name: &str) -> Vec<f32> {
    let tensor = goldens.tensor(name).unwrap();
    let words = tensor.data().chunks_exact(4);
    words
        .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
        .collect()
}

/// Fails if a number is off by more than rounding in samples as large as `scale`, and returns the
/// largest difference in units of 1 + |want|.
fn hold(what: &str, got: &[f32], want: &[f32], scale: f32) -> f32 {
    assert_eq!(got.len(), want.len(), "{what}");
    let mut worst = 0f32;
    for (got, want) in got.iter().zip(want) {
        let error = (got - want).abs();
        let tolerance = 1e-5 * (1.0 + want.abs()) + 2.0 * f32::EPSILON * scale;
        assert!(error <= tolerance, "{what}: {got} is not {want}");
        worst = worst.max(error / (1.0 + want.abs()));
    }
    worst
}

#[test]
fn every_step_of_every_scheduler_agrees_with_diffusers() {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../tests/goldens/schedulers.safetensors"
    );
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let golden = &header.metadata().as_ref().unwrap()["golden"];
    let Golden { cases } = serde_json::from_str(golden).unwrap();
    let goldens = SafeTensors::deserialize(&bytes).unwrap();

    for case in cases {
        let golden = |name: &str| floats(&goldens, &format!("{}.{name}", case.name));
        let kind = SchedulerKind::from_class_name(&case.class).unwrap();
        let config = SchedulerConfig::from_value(case.config).unwrap();
        let mut scheduler = build(kind, &config, case.steps, case.eta).unwrap();

        let timesteps: Vec<f32> = scheduler.timesteps().iter().map(|&t| t as f32).collect();
        let mut worst = hold(&case.name, &timesteps, &golden("timesteps"), 0.0);
        let sigma = scheduler.init_noise_sigma();
        worst = worst.max(hold(&case.name, &[sigma], &golden("init_noise_sigma"), 0.0));

        // The generator has drawn the first noise, and goes on with that of the steps.
        let mut rng = TorchRng::new(case.seed);
        let noise = golden("noise");
        worst = worst.max(hold(&case.name, &rng.randn(noise.len()), &noise, 0.0));
        let mut sample: Vec<f32> = noise.iter().map(|x| x * sigma).collect();
        // The first steps subtract numbers of this size (thousands, where there is no signal).
        let scale = sample.iter().fold(0f32, |max, x| max.max(x.abs()));

        let scales = golden("input_scales");
        let outputs = golden("model_outputs");
        let wants = golden("samples");
        let calls = outputs.chunks(noise.len()).zip(wants.chunks(noise.len()));
        for (i, (output, want)) in calls.enumerate() {
            let what = format!("{} step {i}", case.name);
            let mut one = [1.0];
            scheduler.scale_model_input(i, &mut one);
            worst = worst.max(hold(&what, &one, &scales[i..=i], 0.0));
            sample = scheduler.step(i, output, &sample, &mut rng);
            worst = worst.max(hold(&what, &sample, want, scale));
        }
        println!("{:28} {worst:.1e}", case.name);
    }
}

fn refusal(kind: SchedulerKind, config: Value, steps: usize) -> SchedulerError {
    let config = SchedulerConfig::from_value(config).unwrap();
    match build(kind, &config, steps, 0.0) {
        Ok(_) => panic!("{config:?} must be refused"),
        Err(error) => error,
    }
}

#[test]
fn settings_that_are_not_implemented_are_named() {
    use SchedulerKind::{
        Ddim, Ddpm, Deis, DpmSingle, DpmSolver, Euler, EulerAncestral, Heun, Kdpm2, Kdpm2Ancestral,
        Lcm, Lms, Pndm, UniPc,
    };
    let cases = [
        (Ddim, "clip_sample_range", json!(-1.0)),
        (Ddim, "num_train_timesteps", json!(0)),
        (Ddim, "num_train_timesteps", json!(1_000_000_000_000u64)),
        (Ddim, "beta_start", json!(0.0)),
        (Ddim, "beta_schedule", json!("sigmoid")),
        (Pndm, "beta_end", json!(1.5)),
        (Pndm, "trained_betas", json!([0.1, 0.2])),
        (Pndm, "prediction_type", json!("sample")),
        (EulerAncestral, "prediction_type", json!("sample")),
        (Kdpm2, "prediction_type", json!("sample")),
        (Kdpm2Ancestral, "prediction_type", json!("sample")),
        (Euler, "interpolation_type", json!("cubic")),
        (Euler, "timestep_type", json!("dense")),
        (Euler, "final_sigmas_type", json!("half")),
        (Lms, "beta_schedule", json!("exp")),
        (Heun, "beta_schedule", json!("laplace")),
        (Ddpm, "beta_schedule", json!("exp")),
        (Ddpm, "variance_type", json!("learned")),
        (Ddpm, "variance_type", json!("learned_range")),
        (Ddpm, "variance_type", json!("fixed_large_log")),
        (Ddpm, "variance_type", json!("small")),
        (DpmSolver, "algorithm_type", json!("deis")),
        (DpmSolver, "algorithm_type", json!("dpmsolver")),
        (DpmSolver, "algorithm_type", json!("data_prediction")),
        (DpmSolver, "solver_type", json!("rk4")),
        (DpmSolver, "solver_order", json!(4)),
        (DpmSolver, "use_flow_sigmas", json!(true)),
        (DpmSolver, "use_dynamic_shifting", json!(true)),
        (DpmSolver, "variance_type", json!("learned_range")),
        (DpmSolver, "lambda_min_clipped", json!(100.0)),
        (DpmSingle, "algorithm_type", json!("sde-dpmsolver")),
        (DpmSingle, "algorithm_type", json!("dpmsolver")),
        (DpmSingle, "variance_type", json!("learned")),
        (DpmSingle, "solver_order", json!(4)),
        (DpmSingle, "use_flow_sigmas", json!(true)),
        (Deis, "algorithm_type", json!("sde-dpmsolver++")),
        (Deis, "solver_type", json!("rk4")),
        (Deis, "solver_order", json!(0)),
        (Deis, "use_flow_sigmas", json!(true)),
        (UniPc, "solver_type", json!("bh1")),
        (UniPc, "solver_type", json!("bh3")),
        (UniPc, "predict_x0", json!(false)),
        (UniPc, "solver_p", json!({"_class_name": "DDIMScheduler"})),
        (UniPc, "shift_terminal", json!(0.1)),
        (UniPc, "solver_order", json!(4)),
        (UniPc, "use_flow_sigmas", json!(true)),
        (Lcm, "original_inference_steps", json!(0)),
        (Lcm, "original_inference_steps", json!(2000)),
        (Lcm, "timestep_scaling", json!(-1.0)),
    ];
    for (kind, key, value) in cases {
        let error = refusal(kind, json!({ key: value }), 10);
        assert!(
            matches!(error, SchedulerError::Unsupported { key: named, .. } if named == key),
            "{kind} {key}: {error}"
        );
    }
    let both = [
        (
            DpmSolver,
            "solver_order",
            json!({"algorithm_type": "sde-dpmsolver", "solver_order": 3}),
        ),
        (
            DpmSingle,
            "thresholding",
            json!({"algorithm_type": "dpmsolver", "thresholding": true}),
        ),
    ];
    for (kind, key, mut config) in both {
        config["final_sigmas_type"] = json!("sigma_min");
        let error = refusal(kind, config, 10).to_string();
        assert!(error.contains(&format!("{key} =")), "{error}");
    }
    for (key, value) in [
        ("dynamic_thresholding_ratio", 1.5),
        ("sample_max_value", 0.0),
    ] {
        let error = refusal(Ddim, json!({"thresholding": true, key: value}), 10).to_string();
        assert!(error.contains(&format!("{key} =")), "{error}");
    }
    for key in ["use_exponential_sigmas", "use_beta_sigmas"] {
        for kind in [
            Euler,
            Lms,
            Heun,
            Kdpm2,
            Kdpm2Ancestral,
            DpmSolver,
            DpmSingle,
            Deis,
            UniPc,
        ] {
            let error =
                refusal(kind, json!({"use_karras_sigmas": true, key: true}), 10).to_string();
            assert!(error.contains(&format!("{key} = true")), "{error}");
        }
    }
    let error = SchedulerConfig::from_value(json!({"steps_offset": i64::MAX})).unwrap_err();
    assert!(error.to_string().contains("steps_offset"), "{error}");
    let error = refusal(
        Euler,
        json!({"use_karras_sigmas": true, "sigma_min": -1.0}),
        5,
    );
    assert!(error.to_string().contains("sigma_min = -1"), "{error}");
}

#[test]
fn settings_of_another_class_are_ignored() {
    let config = json!({"thresholding": true, "solver_order": 7, "interpolation_type": "cubic"});
    let config = SchedulerConfig::from_value(config).unwrap();
    assert!(build(SchedulerKind::Pndm, &config, 10, 0.0).is_ok());
}

#[test]
fn the_number_of_steps_is_bounded() {
    use clap::ValueEnum;
    for &kind in SchedulerKind::value_variants() {
        for steps in [0, 1001, usize::MAX] {
            let error = refusal(kind, json!({}), steps);
            assert!(
                matches!(
                    error,
                    SchedulerError::Steps { steps: named, .. }
                        | SchedulerError::TeacherSteps { steps: named, .. } if named == steps
                ),
                "{kind}: {error}"
            );
        }
    }
    for kind in [SchedulerKind::Lcm, SchedulerKind::Tcd] {
        assert!(matches!(
            refusal(kind, json!({"original_inference_steps": 8}), 9),
            SchedulerError::TeacherSteps { max: 8, .. }
        ));
        // Said at once, and not the timesteps of training first.
        assert!(matches!(
            refusal(kind, json!({}), 1001),
            SchedulerError::TeacherSteps { max: 50, .. }
        ));
    }
    // The Runge-Kutta start looks four steps ahead.
    assert!(matches!(
        refusal(SchedulerKind::Pndm, json!({}), 3),
        SchedulerError::Steps { min: 4, .. }
    ));
}

#[test]
fn eta_belongs_to_ddim_and_tcd_and_lies_between_0_and_1() {
    let config = SchedulerConfig::default();
    let error = |kind, eta| build(kind, &config, 10, eta).err();
    for eta in [-0.1, 1.1, f32::NAN] {
        for kind in [SchedulerKind::Ddim, SchedulerKind::Tcd] {
            let error = error(kind, eta);
            assert!(matches!(error, Some(SchedulerError::EtaRange(_))));
        }
    }
    assert!(matches!(
        error(SchedulerKind::Euler, 0.5),
        Some(SchedulerError::EtaUnused(SchedulerKind::Euler))
    ));
}

#[test]
fn a_schedule_that_divides_by_zero_is_refused() {
    // Without signal at the first timestep, a noise prediction says nothing about x0.
    let zero_snr = json!({"rescale_betas_zero_snr": true, "timestep_spacing": "trailing"});
    assert!(matches!(
        refusal(SchedulerKind::Ddim, zero_snr, 10),
        SchedulerError::Degenerate { step: 0 }
    ));
    // Rounded to whole timesteps, 1000 of 1001 evenly spaced ones cannot all differ.
    assert!(matches!(
        refusal(SchedulerKind::DpmSolver, json!({}), 1000),
        SchedulerError::Degenerate { .. }
    ));
}

#[test]
fn a_timestep_beyond_training_is_refused() {
    for kind in [SchedulerKind::Ddim, SchedulerKind::Pndm] {
        for offset in [1, i32::MAX, i32::MIN] {
            let config = json!({"steps_offset": offset, "skip_prk_steps": true});
            assert!(matches!(
                refusal(kind, config, 1000),
                SchedulerError::TimestepRange { .. }
            ));
        }
    }
}

/// The reference visits timestep -1 for 61 trailing steps; here there are as many as asked for.
#[test]
fn trailing_spacing_never_leaves_the_schedule() {
    let config = json!({"timestep_spacing": "trailing", "skip_prk_steps": true});
    let config = SchedulerConfig::from_value(config).unwrap();
    for steps in 1..=1000 {
        let scheduler = build(SchedulerKind::Ddim, &config, steps, 0.0).unwrap();
        assert_eq!(scheduler.timesteps().len(), steps);
    }
}

/// Short schedules meet every edge: what is not refused by name runs to the end with finite numbers.
#[test]
fn every_short_schedule_runs_or_is_refused() {
    use clap::ValueEnum;
    let mut ran = 0;
    for &kind in SchedulerKind::value_variants() {
        for (spacing, karras, skip) in [
            ("leading", false, false),
            ("leading", true, true),
            ("trailing", false, true),
            ("trailing", true, true),
            ("linspace", false, true),
        ] {
            for trained in 2..=24 {
                for steps in 1..=trained {
                    let config = json!({
                        "num_train_timesteps": trained, "timestep_spacing": spacing,
                        "use_karras_sigmas": karras, "skip_prk_steps": skip, "solver_order": 3,
                    });
                    let config = SchedulerConfig::from_value(config).unwrap();
                    let Ok(mut scheduler) = build(kind, &config, steps, 0.0) else {
                        continue;
                    };
                    let mut sample = vec![scheduler.init_noise_sigma(), 0.5];
                    let mut rng = TorchRng::new(0);
                    for i in 0..scheduler.timesteps().len() {
                        sample = scheduler.step(i, &[0.5, -0.5], &sample, &mut rng);
                    }
                    let what = format!("{kind} {spacing} {steps} of {trained}");
                    assert!(sample.iter().all(|x| x.is_finite()), "{what}: {sample:?}");
                    ran += 1;
                }
            }
        }
    }
    assert!(ran > 5000, "only {ran} schedules were not refused");
}

#[test]
fn names_on_the_command_line_round_trip() {
    use clap::ValueEnum;
    for &kind in SchedulerKind::value_variants() {
        assert_eq!(kind.to_string().parse(), Ok(kind));
    }
    for name in [
        "ddim",
        "pndm",
        "euler-a",
        "dpm++",
        "dpm++-sde",
        "lcm",
        "tcd",
        "kdpm2-a",
    ] {
        assert_eq!(name.parse::<SchedulerKind>().unwrap().to_string(), name);
    }
    assert!("sa".parse::<SchedulerKind>().is_err());
}

/// Pictures of `kind` and of `other`, in the same noise and with the same predictions.
fn runs(kind: [SchedulerKind; 2], configs: [Value; 2]) -> [Vec<f32>; 2] {
    let [first, second] = [0, 1].map(|which| {
        let config = SchedulerConfig::from_value(configs[which].clone()).unwrap();
        let mut scheduler = build(kind[which], &config, 6, 0.0).unwrap();
        let mut rng = TorchRng::new(3);
        let mut sample = rng.randn(32);
        let outputs = TorchRng::new(4).randn(32 * scheduler.timesteps().len());
        for (i, output) in outputs.chunks(32).enumerate() {
            sample = scheduler.step(i, output, &sample, &mut rng);
        }
        sample
    });
    [first, second]
}

#[test]
fn the_stochastic_solver_by_name_is_that_of_the_config() {
    use SchedulerKind::{DpmSolver, DpmSolverSde};
    let [named, read] = runs(
        [DpmSolverSde, DpmSolver],
        [
            json!({"algorithm_type": "deis", "use_karras_sigmas": true}),
            json!({"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": true}),
        ],
    );
    assert_eq!(named, read);
    let [named, plain] = runs([DpmSolverSde, DpmSolver], [json!({}), json!({})]);
    assert_ne!(named, plain);
}

#[test]
#[should_panic(expected = "out of order")]
fn skipping_a_step_of_a_multistep_scheduler_panics() {
    let config = SchedulerConfig::default();
    let mut scheduler = build(SchedulerKind::DpmSolver, &config, 5, 0.0).unwrap();
    scheduler.step(1, &[0.0], &[0.0], &mut TorchRng::new(0));
}

/// Clean latents with the noise of a level are what the scheduler would have made of them: a network that is always right
/// about both takes them to the next level.
#[test]
fn a_level_says_how_much_noise_a_sample_has() {
    let config = SchedulerConfig::from_json(
        r#"{"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "prediction_type": "epsilon", "clip_sample": false}"#,
    )
    .unwrap();
    let (clean, noise) = (0.7_f32, -1.3_f32);
    use SchedulerKind as Kind;
    for kind in [
        Kind::Ddim,
        Kind::Lms,
        Kind::Euler,
        Kind::Heun,
        Kind::Kdpm2,
        Kind::DpmSolver,
        Kind::DpmSingle,
        Kind::Deis,
        Kind::UniPc,
        Kind::Tcd,
    ] {
        let mut scheduler = build(kind, &config, 20, 0.0).unwrap();
        let mut rng = TorchRng::new(0);
        for i in 0..10 {
            let at = |[signal, spread]: [f32; 2]| signal * clean + spread * noise;
            let sample = at(scheduler.level(i));
            let next = scheduler.step(i, &[noise], &[sample], &mut rng)[0];
            let wanted = at(scheduler.level(i + 1));
            assert!(
                (next - wanted).abs() < 2e-3,
                "{kind}, {i}: {next}, not {wanted}"
            );
        }
    }
}

/// The same of schedulers that add noise: what a step keeps of the old noise and the fresh noise it adds make up the
/// level's noise together, and the clean latents have the level's weight.
#[test]
fn fresh_noise_brings_a_sample_to_its_level() {
    use SchedulerKind as Kind;
    let config = json!({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "clip_sample": false});
    let config = SchedulerConfig::from_value(config).unwrap();
    for (kind, eta) in [
        (Kind::Ddim, 0.7),
        (Kind::Tcd, 0.7),
        (Kind::Ddpm, 0.0),
        (Kind::EulerAncestral, 0.0),
        (Kind::Kdpm2Ancestral, 0.0),
        (Kind::DpmSolverSde, 0.0),
        (Kind::Lcm, 0.0),
    ] {
        // The next sample is linear in clean latents, old noise and fresh noise: three runs tell the weights.
        let next = |i: usize, clean: f32, noise: f32, fresh: u64| {
            let mut scheduler = build(kind, &config, 10, eta).unwrap();
            let mut rng = TorchRng::new(fresh);
            let mut next = 0.0;
            for i in 0..=i {
                let [signal, spread] = scheduler.level(i);
                let sample = signal * clean + spread * noise;
                next = scheduler.step(i, &[noise], &[sample], &mut rng)[0];
            }
            next
        };
        for i in 0..8 {
            let none = next(i, 0.0, 0.0, 5);
            let signal = next(i, 1.0, 0.0, 5) - none;
            let old = next(i, 0.0, 1.0, 5) - none;
            let [want_signal, want_noise] = {
                let scheduler = build(kind, &config, 10, eta).unwrap();
                scheduler.level(i + 1)
            };
            let fresh = (want_noise.powi(2) - old.powi(2)).max(0.0).sqrt();
            let what = format!("{kind}, {i}");
            assert!(
                (signal - want_signal).abs() < 2e-3 * want_signal.max(1.0),
                "{what}: {signal}"
            );
            assert!(old <= want_noise * 1.001, "{what}: {old} of {want_noise}");
            // The draw of that step: no more than a few standard deviations, and none where none is due.
            assert!(
                none.abs() <= 4.0 * fresh + 1e-2,
                "{what}: {none}, not {fresh}"
            );
            let drawn = fresh > 0.05 * want_noise;
            assert!(!drawn || none != 0.0, "{what}: no noise was drawn");
        }
    }
}
