//! Why a scheduler cannot be built, cause by cause.

use super::SchedulerKind;

/// Why a scheduler cannot be built. Every cause names what the user can change.
#[derive(Debug, thiserror::Error)]
pub enum SchedulerError {
    /// The text of the configuration is not JSON.
    #[error("scheduler config is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// The configuration is JSON, but not an object.
    #[error("scheduler config is not a JSON object")]
    NotAnObject,
    /// A configuration value has the wrong type, is out of range, or asks for something this
    /// scheduler does not implement.
    #[error("scheduler config: {key} = {value} is not supported: {reason}")]
    Unsupported {
        /// The configuration key.
        key: &'static str,
        /// Its value, as JSON.
        value: String,
        /// What would be accepted, or why this is not.
        reason: String,
    },
    /// The model's scheduler is one that Lacuna does not have.
    #[error(
        "scheduler class {0} is not supported (supported: {known}); choose one by --scheduler",
        known = SchedulerKind::class_names()
    )]
    UnknownClass(String),
    /// The model's scheduler is one for networks that learned noise of another form.
    #[error(
        "scheduler class {0} is not supported, and no --scheduler stands in for it: the model learned noise of \
         another form (EDM, flow matching); take a model with a schedule of betas"
    )]
    Foreign(String),
    /// The number of sampler steps does not fit the schedule.
    #[error("{steps} sampler steps: choose between {min} and {max}")]
    Steps {
        /// What was asked for.
        steps: usize,
        /// The fewest this scheduler can make.
        min: usize,
        /// The most it can make: the timesteps of training.
        max: usize,
    },
    /// The number of sampler steps of a distilled model does not fit its teacher's.
    #[error(
        "{steps} sampler steps: choose between 1 and {max}, the teacher's, or give --scheduler-option \
         original_inference_steps=N"
    )]
    TeacherSteps {
        /// What was asked for.
        steps: usize,
        /// The most: so many the teacher made.
        max: usize,
    },
    /// A picture that begins with another one is to differ so little that no step is made.
    #[error(
        "of {steps} sampler steps none is left: give --strength {least:.2} or more, or more --steps"
    )]
    NoSteps {
        /// What was asked for.
        steps: usize,
        /// The least strength that leaves one.
        least: f64,
    },
    /// `eta` is not a number between 0 and 1.
    #[error("eta {0} is not between 0 and 1")]
    EtaRange(f32),
    /// `eta` was given for a scheduler that has no such knob.
    #[error("eta is a setting of ddim and tcd; {0} has none")]
    EtaUnused(SchedulerKind),
    /// The timestep spacing leads outside the timesteps of training.
    #[error(
        "timestep {timestep} is outside the {trained} timesteps of training: \
         use fewer steps or a smaller steps_offset"
    )]
    TimestepRange {
        /// The timestep that was reached.
        timestep: i64,
        /// How many timesteps the model was trained with.
        trained: usize,
    },
    /// A coefficient of a sampler step is infinite or not a number: for instance two steps at one
    /// noise level, or noise prediction where the schedule has no signal left.
    #[error(
        "sampler step {step} divides by zero under this schedule: \
         use fewer steps, another timestep_spacing or another prediction_type"
    )]
    Degenerate {
        /// Index of the step, from 0.
        step: usize,
    },
}
