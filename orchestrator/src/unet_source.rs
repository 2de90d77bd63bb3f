//! A U-Net and where its weights come from: the files of a model, or a seed.

use burn::tensor::Device;
use lacuna_model::device::is_cpu;
use lacuna_model::layers::Parameter;
use lacuna_model::unet::UNet;
use lacuna_model::weights::{Apart, Stored, Weights, list, random_digest};

use crate::error::Result;
use crate::memory;

/// A U-Net whose weights, or a part of them, are loaded to the user's device when they are needed.
pub struct UNetSource {
    weights: Origin,
    /// Of the weights.
    digest: String,
    device: Device,
}

/// Where weights come from.
enum Origin {
    /// Files that were checked to hold them.
    Files(Stored<UNet>),
    /// Nowhere: they are random, of a seed. What takes time is the same.
    Seed(UNet, u64),
}

impl UNetSource {
    /// The U-Net of a model's files.
    ///
    /// # Errors
    /// As [`Stored::digest`].
    pub fn of_files(stored: Stored<UNet>, device: &Device) -> Result<Self> {
        Ok(Self {
            digest: stored.digest()?.to_owned(),
            weights: Origin::Files(stored),
            device: device.clone(),
        })
    }

    /// `unet` with random weights.
    pub fn random(unet: UNet, seed: u64, device: &Device) -> Self {
        Self {
            digest: random_digest(&unet, seed),
            weights: Origin::Seed(unet, seed),
            device: device.clone(),
        }
    }

    /// The layers.
    pub fn layers(&self) -> &UNet {
        match &self.weights {
            Origin::Files(stored) => stored.layers(),
            Origin::Seed(unet, _) => unet,
        }
    }

    /// Whether adapters change its weights.
    pub fn is_adapted(&self) -> bool {
        self.adapted().is_some()
    }

    /// The files, where adapters change what is in them.
    pub fn adapted(&self) -> Option<&Stored<UNet>> {
        match &self.weights {
            Origin::Files(stored) => Some(stored).filter(|stored| stored.is_adapted()),
            Origin::Seed(..) => None,
        }
    }

    /// Identifies the weights, adapters included ([`Stored::digest`]).
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Identifies the weights without adapters.
    ///
    /// # Errors
    /// As [`Stored::base_digest`].
    pub fn base_digest(&self) -> Result<String> {
        match &self.weights {
            Origin::Files(stored) => Ok(stored.base_digest()?),
            Origin::Seed(..) => Ok(self.digest.clone()),
        }
    }

    /// Loads `parameters` alone.
    ///
    /// # Errors
    /// As [`Weights::load_part`].
    pub fn load(&self, parameters: &[Parameter]) -> Result<Weights> {
        let part = match &self.weights {
            Origin::Files(stored) => stored.load_part(parameters, &self.device),
            Origin::Seed(_, seed) => Weights::random_part(parameters, *seed, &self.device),
        };
        Ok(part?)
    }

    /// Loads `parameters`, of which the layers `apart` stay without their adapters, which come along.
    ///
    /// # Errors
    /// As [`Stored::load_apart`].
    pub fn load_apart(&self, parameters: &[Parameter], apart: &Apart) -> Result<Weights> {
        let part = match &self.weights {
            Origin::Files(stored) => stored.load_apart(parameters, apart, &self.device),
            Origin::Seed(_, seed) => Weights::random_apart(parameters, apart, *seed, &self.device),
        };
        Ok(part?)
    }

    /// Loads everything.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_all(&self) -> Result<Weights> {
        self.load(&list(self.layers()))
    }

    /// Checks that all weights, in f32 as they are held, fit in what memory is free. Of a GPU's memory nothing is
    /// known here.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
    pub fn check_room(&self) -> Result<()> {
        if !is_cpu(&self.device) {
            return Ok(());
        }
        let values: usize = list(self.layers()).iter().map(Parameter::values).sum();
        let bytes = (values * size_of::<f32>()) as u64;
        memory::check_room("the U-Net", bytes, memory::available())
    }
}
