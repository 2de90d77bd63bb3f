//! What differs in how models are used.

/// What of the reference's pipelines differs in how a model is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Stable Diffusion 1.x and 2.x.
    StableDiffusion,
    /// SDXL: two text encoders, and the picture's sizes as an input (Podell et al. 2023).
    StableDiffusionXl,
    /// Stable Diffusion with the guidance scale as an input, in a few steps (Luo et al. 2023).
    LatentConsistency,
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::StableDiffusion => "Stable Diffusion",
            Self::StableDiffusionXl => "SDXL",
            Self::LatentConsistency => "a latent consistency model",
        })
    }
}

impl Family {
    /// The guidance scale of its pipeline where nobody says another.
    pub fn usual_guidance(self) -> f32 {
        match self {
            Self::StableDiffusion => 7.5,
            Self::StableDiffusionXl => 5.0,
            Self::LatentConsistency => 8.5,
        }
    }
}

/// The pipeline classes whose parts this program has.
pub const PIPELINES: [(&str, Family); 7] = [
    ("StableDiffusionPipeline", Family::StableDiffusion),
    ("StableDiffusionXLPipeline", Family::StableDiffusionXl),
    ("LatentConsistencyModelPipeline", Family::LatentConsistency),
    ("StableDiffusionInpaintPipeline", Family::StableDiffusion),
    (
        "StableDiffusionXLInpaintPipeline",
        Family::StableDiffusionXl,
    ),
    ("StableDiffusionImg2ImgPipeline", Family::StableDiffusion),
    (
        "LatentConsistencyModelImg2ImgPipeline",
        Family::LatentConsistency,
    ),
];
