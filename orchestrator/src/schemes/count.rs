//! What one U-Net call sends, exchange by exchange.

use crate::fleet::link::Link;
use crate::fleet::tally::Kind;

/// One exchange with all workers.
#[derive(Clone, Debug, PartialEq)]
pub struct Counted {
    /// The layer, or what the exchange is called.
    pub label: String,
    /// Under which kind of layer it counts.
    pub kind: Kind,
    /// Bytes of tensors that each worker gets.
    pub up: Vec<usize>,
    /// Bytes of tensors that each worker hands out.
    pub down: Vec<usize>,
    /// Bands in which it goes: what comes down of one is on its way while the next goes up.
    pub bands: usize,
    /// Of the bytes that come down, those that do not wait for what goes up, and come down beside it.
    pub ahead: usize,
    /// Work of all workers until the next exchange, multiply and add counted as two.
    pub workers_flop: u64,
    /// Work of the user, likewise.
    pub user_flop: u64,
}

/// What one U-Net call takes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Count {
    /// Every exchange, in order.
    pub exchanges: Vec<Counted>,
    /// Work of each worker, multiply and add counted as two.
    pub workers_flop: Vec<u64>,
    /// Work of the user, likewise.
    pub user_flop: u64,
    /// Number of lanes that go through the exchanges side by side.
    pub lanes: usize,
}

impl Count {
    /// A count of nothing, for so many workers.
    pub fn new(workers: usize) -> Self {
        Self {
            workers_flop: vec![0; workers],
            lanes: 1,
            ..Self::default()
        }
    }

    /// The same where so large a share of the workers' work is done again by the user, if any is.
    pub fn checked(mut self, share: Option<f64>) -> Self {
        let share = share.unwrap_or(0.0);
        let again = |flop: u64| (flop as f64 * share) as u64;
        self.user_flop += again(self.workers_flop.iter().sum());
        for exchange in &mut self.exchanges {
            exchange.user_flop += again(exchange.workers_flop);
        }
        self
    }

    /// What so many lanes like this one take together. They wait side by side, so the number of exchanges
    /// stays.
    pub fn of_lanes(mut self, lanes: usize) -> Self {
        let times = lanes as u64;
        for exchange in &mut self.exchanges {
            let bytes = exchange.up.iter_mut().chain(&mut exchange.down);
            bytes.for_each(|bytes| *bytes *= lanes);
            exchange.ahead *= lanes;
            exchange.workers_flop *= times;
            exchange.user_flop *= times;
        }
        self.workers_flop.iter_mut().for_each(|flop| *flop *= times);
        Self {
            user_flop: self.user_flop * times,
            lanes,
            ..self
        }
    }

    /// How often the user waits for the workers.
    pub fn round_trips(&self) -> usize {
        let sends = |e: &&Counted| e.up.iter().any(|bytes| *bytes > 0);
        self.exchanges.iter().filter(sends).count()
    }

    /// Bytes of tensors to all workers, and from them.
    pub fn total(&self) -> [u64; 2] {
        let sum = |bytes: &[usize]| bytes.iter().sum::<usize>() as u64;
        self.exchanges.iter().fold([0, 0], |[up, down], e| {
            [up + sum(&e.up), down + sum(&e.down)]
        })
    }

    /// Bytes of tensors from all workers that come down beside what goes up.
    pub fn ahead(&self) -> u64 {
        self.exchanges.iter().map(|e| e.ahead as u64).sum()
    }

    /// Seconds on `link`: for what goes up, for what comes down beside that, and for waiting. What comes down ahead takes time
    /// only where it takes longer than nothing else comes down.
    pub fn link_seconds(&self, link: &Link) -> [f64; 3] {
        let (mut up, mut rest, mut free) = (0.0, 0.0, 0.0);
        for exchange in &self.exchanges {
            let sum = |bytes: &[usize]| bytes.iter().sum::<usize>() as u64;
            let down = sum(&exchange.down) - exchange.ahead as u64;
            let there = link.seconds([sum(&exchange.up), 0], 0);
            let back = link.seconds([0, down], 0);
            // Equal bands go through two stages: the slower one is never idle, but for one band of the other.
            let bands = exchange.bands.max(1) as f64;
            let both = there.max(back) + there.min(back) / bands;
            up += there;
            rest += both - there;
            free += both - back;
        }
        let ahead = link.seconds([0, self.ahead()], 0);
        let waits = link.seconds([0, 0], self.round_trips());
        [up, rest + (ahead - free - waits).max(0.0), waits]
    }

    /// Most bytes of tensors that a worker hands out at once.
    pub fn largest_reply(&self) -> usize {
        let replies = self.exchanges.iter().flat_map(|e| &e.down);
        replies.copied().max().unwrap_or(0)
    }
}

/// Work of the user and of all workers that the first of two calls does beside what the later one does.
pub fn once([first, later]: &[Count; 2]) -> [u64; 2] {
    let workers = |count: &Count| count.workers_flop.iter().sum::<u64>();
    [
        first.user_flop.saturating_sub(later.user_flop),
        workers(first).saturating_sub(workers(later)),
    ]
}
