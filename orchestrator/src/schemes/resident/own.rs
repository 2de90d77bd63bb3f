//! The hub that notes which layers are the user's.

use std::collections::HashSet;

use lacuna_model::survey::Operation;
use lacuna_model::unet::UNet;
use lacuna_protocol::exchange::Exchange;

use super::conductor::{Hub, conductor};
use super::layout::Layout;
use crate::error::Result;

/// Tensor prefixes of the layers that the user computes in the first call of a picture, which makes the
/// prompt's keys and values; later calls do no others.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub fn user_layers(unet: &UNet, layout: &Layout) -> Result<HashSet<String>> {
    let mut conductor = conductor(unet, layout, Own::default());
    conductor.step(unet, 0.0)?;
    Ok(conductor.party.hub.layers)
}

#[derive(Default)]
struct Own {
    layers: HashSet<String>,
}

impl Hub for Own {
    type Error = lacuna_model::Error;

    fn exchange(&mut self, _: &Exchange<'_>) -> lacuna_model::Result<()> {
        Ok(())
    }

    fn workers_do(&mut self, _: &Operation, _: usize) {}

    fn user_does(&mut self, operation: &Operation) {
        self.layers.insert(operation.layer.clone());
    }
}
