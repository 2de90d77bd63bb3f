//! Which timesteps the schedulers of distilled models visit: some of those that the teacher visited.

use super::SchedulerError;
use super::config::SchedulerConfig;
use super::keys::unsupported;

/// Steps of the teacher, where a config says nothing.
const ORIGINAL: usize = 50;

/// Refuses `steps` that are more than the teacher's, which may be so many as there are `trained` timesteps.
pub(super) fn check_steps(
    config: &SchedulerConfig,
    trained: usize,
    steps: usize,
) -> Result<(), SchedulerError> {
    let max = original_steps(config, trained)?;
    match (1..=max).contains(&steps) {
        true => Ok(()),
        false => Err(SchedulerError::TeacherSteps { steps, max }),
    }
}

fn original_steps(config: &SchedulerConfig, trained: usize) -> Result<usize, SchedulerError> {
    let original = config.original_inference_steps.unwrap_or(ORIGINAL);
    match (1..=trained).contains(&original) {
        true => Ok(original),
        false => {
            let reason = format!("expected 1 to num_train_timesteps = {trained}");
            Err(unsupported("original_inference_steps", original, reason))
        }
    }
}

/// `steps` timesteps, descending, evenly among the `original_inference_steps` of the teacher, which went up in whole
/// strides to the last timestep of the `trained` ones; of a picture that begins with another one, among the lowest `share`
/// of these.
pub(super) fn timesteps(
    config: &SchedulerConfig,
    trained: usize,
    steps: usize,
    share: f64,
) -> Result<Vec<i64>, SchedulerError> {
    let original = original_steps(config, trained)?;
    let stride = trained / original;
    let (all, original) = (original, (original as f64 * share) as usize);
    if original == 0 {
        let least = 1.0 / all as f64;
        return Err(SchedulerError::NoSteps { steps: all, least });
    }
    if steps > original {
        let max = original;
        return Err(SchedulerError::TeacherSteps { steps, max });
    }
    let apart = original as f64 / steps as f64;
    Ok((0..steps)
        .map(|i| {
            let skipped = (i as f64 * apart) as usize;
            ((original - skipped) * stride) as i64 - 1
        })
        .collect())
}
