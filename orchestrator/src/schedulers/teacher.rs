//! Which timesteps the schedulers of distilled models visit: some of those that the teacher visited.

use super::SchedulerError;
use super::config::SchedulerConfig;
use super::keys::unsupported;

/// `steps` timesteps, descending, evenly among the `original_inference_steps` of the teacher, which went up in whole
/// strides to the last timestep of the `trained` ones; of a picture that begins with another one, among the lowest `share`
/// of these.
pub(super) fn timesteps(
    config: &SchedulerConfig,
    trained: usize,
    steps: usize,
    share: f64,
) -> Result<Vec<i64>, SchedulerError> {
    let original = config.original_inference_steps.unwrap_or(50);
    if !(1..=trained).contains(&original) {
        let reason = format!("expected 1 to num_train_timesteps = {trained}");
        return Err(unsupported("original_inference_steps", original, reason));
    }
    let stride = trained / original;
    let (all, original) = (original, (original as f64 * share) as usize);
    if original == 0 {
        let least = 1.0 / all as f64;
        return Err(SchedulerError::NoSteps { steps: all, least });
    }
    if steps > original {
        let (min, max) = (1, original);
        return Err(SchedulerError::Steps { steps, min, max });
    }
    let apart = original as f64 / steps as f64;
    Ok((0..steps)
        .map(|i| {
            let skipped = (i as f64 * apart) as usize;
            ((original - skipped) * stride) as i64 - 1
        })
        .collect())
}
