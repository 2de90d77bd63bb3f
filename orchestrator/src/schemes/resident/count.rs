//! The hub that counts: what a U-Net call would send, without sending it.

use std::ops::Range;

use lacuna_model::partition::Levels;
use lacuna_model::survey::Operation;
use lacuna_model::unet::UNet;
use lacuna_protocol::exchange::{Exchange, Item, Seat};
use lacuna_protocol::placement::Placement;

use super::cloud::kind_of;
use super::conductor::{Hub, conductor};
use super::layout::Layout;
use super::places::{cut_strips, seats};
use crate::error::{Error, Result};
use crate::schemes::count::{Count, Counted};

/// Counts the first two calls of a picture: the first may bring the prompt along, and features whole of
/// which later only changes travel; all later ones are like the second.
///
/// # Errors
/// [`lacuna_model::Error::TooManyStrips`].
pub fn first_calls(unet: &UNet, layout: &Layout, workers: usize) -> Result<[Count; 2]> {
    let lanes = layout.lane_count();
    let layout = &layout.of_lane();
    let [_, rows, _] = layout.latents;
    let levels = Levels::new(rows, unet.levels());
    let counter = Counter {
        strips: cut_strips(&levels, workers)?,
        rows: levels,
        placement: layout.placement,
        count: Count::new(workers),
    };
    let mut conductor = conductor(unet, layout, counter);
    let mut call = || {
        conductor.step(unet, 0.0)?;
        let count = std::mem::replace(&mut conductor.party.hub.count, Count::new(workers));
        Ok::<_, Error>(count.of_lanes(lanes))
    };
    Ok([call()?, call()?])
}

struct Counter {
    rows: Levels,
    strips: Vec<Range<usize>>,
    placement: Placement,
    count: Count,
}

impl Hub for Counter {
    type Error = Error;

    fn exchange(&mut self, exchange: &Exchange<'_>) -> Result<()> {
        let bytes = |items: Vec<Item>| {
            let each = items.iter().map(|item| item.bytes(self.placement.wires));
            each.sum::<usize>()
        };
        let seats = seats(&self.rows, &self.strips, exchange.level);
        let up = |seat: &Seat| bytes(exchange.to_worker(*seat));
        let down = |seat: &Seat| bytes(exchange.from_worker(*seat));
        self.count.exchanges.push(Counted {
            label: exchange.label(),
            kind: kind_of(exchange),
            up: seats.iter().map(up).collect(),
            down: seats.iter().map(down).collect(),
            bands: 1,
            ahead: 0,
            workers_flop: 0,
            user_flop: 0,
        });
        Ok(())
    }

    fn workers_do(&mut self, operation: &Operation, level: usize) {
        let of = self.rows.rows(level).max(1) as u64;
        for (flop, strip) in self.count.workers_flop.iter_mut().zip(&self.strips) {
            *flop += operation.flop * self.rows.scale(strip, level).len() as u64 / of;
        }
        if let Some(exchange) = self.count.exchanges.last_mut() {
            exchange.workers_flop += operation.flop;
        }
    }

    fn user_does(&mut self, operation: &Operation) {
        self.count.user_flop += operation.flop;
        if let Some(exchange) = self.count.exchanges.last_mut() {
            exchange.user_flop += operation.flop;
        }
    }
}
