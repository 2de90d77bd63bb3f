//! A relay before a worker: it adds latency, and does to chosen messages what networks, and those who stand between, do.
//!
//! It reads HTTP/1.1 in plain as far as it must to tell one message from the next. Bytes go on as they come, so
//! that an answer that begins while its request still comes does so through the relay, too. Rates of a link are
//! another matter: `lacuna_orchestrator::fleet::emulated` shares one among all workers.

pub mod fault;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use reqwest::Url;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::workers::is_work;
use fault::{Draws, Fault, Way};

/// Bytes that are read at a time.
const PIECE: usize = 1 << 16;
/// How long the answer to a request's second copy is waited for.
const SECOND: Duration = Duration::from_secs(10);
/// What whoever stands before a worker says when it does not reach it.
const NOT_REACHED: &str =
    "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 11\r\n\r\nnot reached";

/// A request that came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The number of its connection, counted from 0.
    pub connection: u64,
    /// Its number there, counted from 0.
    pub message: u64,
    /// Its number among the pieces of work of all connections, counted from 1, if it is one.
    pub work: Option<usize>,
}

type Plan = Box<dyn Fn(&Request) -> Option<Fault> + Send + Sync>;

/// A relay on a port that the system chooses; it ends when dropped, and every connection with it.
pub struct Relay {
    /// Where it listens.
    pub url: String,
    state: Arc<State>,
}

struct State {
    worker: SocketAddr,
    /// What becomes of a request; none where bytes are passed on as they are.
    plan: Option<Plan>,
    /// What each message takes beside, up and down.
    latency: [Duration; 2],
    connections: AtomicU64,
    works: AtomicUsize,
    /// How many requests are still to be refused.
    refusing: AtomicUsize,
    /// What happened so far.
    struck: Mutex<Vec<(Request, Fault)>>,
    /// Bytes that went up and down.
    passed: [AtomicU64; 2],
    presence: watch::Sender<Presence>,
}

/// Who is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    /// The worker.
    There,
    /// Nobody, but connections are taken, and stay.
    Silent,
    /// Nobody.
    Gone,
}

impl Relay {
    /// A relay before the worker at `url` that does to requests and their replies what `plan` says, and has each message
    /// wait for the `latency` of its way, up and down. To be called on the async runtime.
    pub fn start(
        url: &str,
        latency: [Duration; 2],
        plan: impl Fn(&Request) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        Self::before(url, latency, Some(Box::new(plan)))
    }

    /// One that does `fault` to the `at`-th piece of work, counted from 1.
    pub fn failing(url: &str, at: usize, fault: Fault) -> Self {
        Self::start(url, [Duration::ZERO; 2], move |request| {
            (request.work == Some(at)).then_some(fault)
        })
    }

    /// One that does what `draws` says.
    pub fn drawing(url: &str, draws: Draws) -> Self {
        Self::start(url, [Duration::ZERO; 2], move |request| {
            draws.fault(request.connection, request.message)
        })
    }

    /// One that passes on bytes that it does not understand, and counts them.
    pub fn counting(url: &str) -> Self {
        Self::before(url, [Duration::ZERO; 2], None)
    }

    fn before(url: &str, latency: [Duration; 2], plan: Option<Plan>) -> Self {
        let mut url: Url = url.parse().unwrap();
        let worker = url.socket_addrs(|| None).unwrap()[0];
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let address = listener.local_addr().unwrap();
        url.set_ip_host(address.ip()).unwrap();
        url.set_port(Some(address.port())).unwrap();
        let state = Arc::new(State {
            worker,
            plan,
            latency,
            connections: AtomicU64::new(0),
            works: AtomicUsize::new(0),
            refusing: AtomicUsize::new(0),
            struck: Mutex::default(),
            passed: [AtomicU64::new(0), AtomicU64::new(0)],
            presence: watch::Sender::new(Presence::There),
        });
        tokio::spawn(state.clone().accept(listener));
        Self {
            url: url.into(),
            state,
        }
    }

    /// From now on nobody is there, and all connections are closed.
    pub fn cut(&self) {
        self.state.presence.send_replace(Presence::Gone);
    }

    /// From now on nothing is said any more, though all connections stay.
    pub fn silence(&self) {
        self.state.presence.send_replace(Presence::Silent);
    }

    /// How many pieces of work came, repeated ones too.
    pub fn works(&self) -> usize {
        self.state.works.load(Ordering::SeqCst)
    }

    /// The faults that have happened, and to which requests.
    pub fn struck(&self) -> Vec<(Request, Fault)> {
        self.state.struck.lock().unwrap().clone()
    }

    /// How many faults have happened.
    pub fn faults(&self) -> usize {
        self.state.struck.lock().unwrap().len()
    }

    /// Bytes that went up and down so far.
    pub fn passed(&self) -> [u64; 2] {
        let [up, down] = &self.state.passed;
        [up, down].map(|bytes| bytes.load(Ordering::SeqCst))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.cut();
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Closed,
    Reset,
}

/// A request, and what it and its reply suffer.
#[derive(Clone, Copy)]
struct Exchange {
    request: Request,
    fault: Option<Fault>,
}

impl State {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        loop {
            let client = tokio::select! {
                client = listener.accept() => client,
                // The listener is dropped, which is what a dead machine does.
                () = self.has(Presence::Gone) => return,
            };
            let (client, _) = client.unwrap();
            let number = self.connections.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(self.clone().join(client, number));
        }
    }

    /// Passes on everything between a client and the worker, until one of them leaves or a fault ends it.
    async fn join(self: Arc<Self>, mut client: TcpStream, number: u64) {
        if *self.presence.borrow() == Presence::Silent {
            return self.has(Presence::Gone).await;
        }
        // To the client a worker that is not there is a connection that ends at once.
        let Ok(mut worker) = TcpStream::connect(self.worker).await else {
            return;
        };
        for stream in [&client, &worker] {
            stream.set_nodelay(true).unwrap();
        }
        // The exchange whose reply has not begun yet.
        let due = Mutex::new(None);
        let ended = {
            let (from_client, to_client) = client.split();
            let (from_worker, to_worker) = worker.split();
            let to_client = tokio::sync::Mutex::new(to_client);
            tokio::select! {
                ended = self.requests(from_client, to_worker, &to_client, number, &due) => ended,
                ended = self.replies(from_worker, &to_client, &due) => ended,
                () = self.has(Presence::Silent) => {
                    self.has(Presence::Gone).await;
                    Ended::Closed
                }
                () = self.has(Presence::Gone) => Ended::Closed,
            }
        };
        if ended == Ended::Reset {
            for stream in [&client, &worker] {
                stream.set_zero_linger().unwrap();
            }
        }
    }

    /// Waits until it is so.
    async fn has(&self, presence: Presence) {
        let mut watched = self.presence.subscribe();
        // The sender is never dropped before this is, so there is nothing to fail.
        let _ = watched.wait_for(|now| *now == presence).await;
    }

    async fn requests(
        &self,
        client: ReadHalf<'_>,
        mut worker: WriteHalf<'_>,
        to_client: &tokio::sync::Mutex<WriteHalf<'_>>,
        connection: u64,
        due: &Mutex<Option<Exchange>>,
    ) -> Ended {
        let mut source = Source::of(client);
        if self.plan.is_none() {
            let mut flow = Flow::plain(self, Way::Up);
            while let Some(bytes) = source.piece(PIECE).await {
                if let Err(ended) = flow.pass(bytes, &mut worker).await {
                    return ended;
                }
            }
            return Ended::Closed;
        }
        for message in 0.. {
            let Some(head) = source.head().await else {
                break;
            };
            let mut left = body_length(&head).unwrap_or(0);
            let exchange = self.exchange(&head, connection, message);
            if matches!(exchange.fault, Some(Fault::Refuse { .. })) {
                if source.all(left).await.is_none() {
                    break;
                }
                self.strike(&exchange);
                let mut client = to_client.lock().await;
                if client.write_all(NOT_REACHED.as_bytes()).await.is_err() {
                    break;
                }
                continue;
            }
            *due.lock().unwrap() = Some(exchange);
            let mut flow = Flow::of(self, exchange, Way::Up, head.len(), left);
            let mut bytes = head;
            if exchange.fault == Some(Fault::Duplicate) {
                let Some(body) = source.all(left).await else {
                    break;
                };
                bytes.extend(body);
                left = 0;
                tokio::spawn(send_again(self.worker, bytes.clone()));
                self.strike(&exchange);
            }
            loop {
                if let Err(ended) = flow.pass(bytes, &mut worker).await {
                    return ended;
                }
                if left == 0 {
                    break;
                }
                let Some(piece) = source.piece(left).await else {
                    return Ended::Closed;
                };
                left -= piece.len();
                bytes = piece;
            }
        }
        Ended::Closed
    }

    async fn replies(
        &self,
        worker: ReadHalf<'_>,
        client: &tokio::sync::Mutex<WriteHalf<'_>>,
        due: &Mutex<Option<Exchange>>,
    ) -> Ended {
        let mut source = Source::of(worker);
        let mut flow = Flow::plain(self, Way::Down);
        loop {
            if !source.fill().await {
                return Ended::Closed;
            }
            // A client asks once the last answer is there: what comes first after a request begins its answer.
            let exchange = due.lock().unwrap().take();
            let bytes = match exchange {
                Some(exchange) => {
                    let Some(head) = source.head().await else {
                        return Ended::Closed;
                    };
                    let body = body_length(&head).unwrap_or(0);
                    flow = Flow::of(self, exchange, Way::Down, head.len(), body);
                    head
                }
                None => source.piece(PIECE).await.unwrap_or_default(),
            };
            let mut client = client.lock().await;
            if let Err(ended) = flow.pass(bytes, &mut *client).await {
                return ended;
            }
        }
    }

    /// The request of this `head`, and what becomes of it.
    fn exchange(&self, head: &[u8], connection: u64, message: u64) -> Exchange {
        let text = String::from_utf8_lossy(head);
        let path = text.strip_prefix("POST ");
        let path = path.and_then(|rest| rest.split(' ').next());
        let work = path
            .is_some_and(is_work)
            .then(|| self.works.fetch_add(1, Ordering::SeqCst) + 1);
        let request = Request {
            connection,
            message,
            work,
        };
        let mut fault = self.plan.as_ref().and_then(|plan| plan(&request));
        if let Some(Fault::Refuse { requests }) = fault {
            self.refusing.fetch_add(requests, Ordering::SeqCst);
        }
        let one_less = |left: usize| left.checked_sub(1);
        let refusing = self
            .refusing
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
        if let Ok(requests) = refusing {
            fault = Some(Fault::Refuse { requests });
        }
        Exchange { request, fault }
    }

    /// It has happened.
    fn strike(&self, exchange: &Exchange) {
        if let Some(fault) = exchange.fault {
            self.struck.lock().unwrap().push((exchange.request, fault));
        }
    }
}

/// Sends a request by a connection of its own, and reads what is answered for nobody.
async fn send_again(worker: SocketAddr, bytes: Vec<u8>) {
    let Ok(mut stream) = TcpStream::connect(worker).await else {
        return;
    };
    if stream.write_all(&bytes).await.is_ok() {
        let mut unread = vec![0; PIECE];
        let read = async { while let Ok(1..) = stream.read(&mut unread).await {} };
        let _ = timeout(SECOND, read).await;
    }
}

/// The bytes of a body that a head announces, if it does.
fn body_length(head: &[u8]) -> Option<usize> {
    let text = String::from_utf8_lossy(head);
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        let is_length = name.eq_ignore_ascii_case("content-length");
        is_length.then(|| value.trim().parse().ok())?
    })
}

/// What comes in by a connection.
struct Source<R> {
    from: R,
    held: Vec<u8>,
}

impl<R: AsyncRead + Unpin> Source<R> {
    fn of(from: R) -> Self {
        let held = Vec::new();
        Self { from, held }
    }

    /// Waits for more bytes; says whether there are any.
    async fn more(&mut self) -> bool {
        self.held.reserve(PIECE);
        matches!(self.from.read_buf(&mut self.held).await, Ok(1..))
    }

    /// Waits until bytes are there that were not taken.
    async fn fill(&mut self) -> bool {
        !self.held.is_empty() || self.more().await
    }

    fn take(&mut self, len: usize) -> Vec<u8> {
        let rest = self.held.split_off(len);
        std::mem::replace(&mut self.held, rest)
    }

    /// The head of a message, to the end of its empty line.
    async fn head(&mut self) -> Option<Vec<u8>> {
        loop {
            let end = self.held.windows(4).position(|four| four == b"\r\n\r\n");
            if let Some(end) = end {
                return Some(self.take(end + 4));
            }
            if !self.more().await {
                return None;
            }
        }
    }

    /// The next bytes, at most so many; never none.
    async fn piece(&mut self, most: usize) -> Option<Vec<u8>> {
        if !self.fill().await {
            return None;
        }
        Some(self.take(self.held.len().min(most)))
    }

    /// So many bytes.
    async fn all(&mut self, len: usize) -> Option<Vec<u8>> {
        while self.held.len() < len {
            if !self.more().await {
                return None;
            }
        }
        Some(self.take(len))
    }
}

/// A message on its way.
struct Flow<'a> {
    state: &'a State,
    exchange: Option<Exchange>,
    way: Way,
    passed: usize,
    /// Where a bit is flipped, and which.
    flip: Option<(usize, u8)>,
}

impl<'a> Flow<'a> {
    /// Bytes to which nothing happens.
    fn plain(state: &'a State, way: Way) -> Self {
        Self {
            state,
            exchange: None,
            way,
            passed: 0,
            flip: None,
        }
    }

    /// The request or the reply of `exchange`, of so many bytes of `head` and `body`.
    fn of(state: &'a State, exchange: Exchange, way: Way, head: usize, body: usize) -> Self {
        let flip = match exchange.fault {
            Some(Fault::Flip { way: of, bit }) if of == way && body > 0 => {
                let bit = (bit % (8 * body as u64)) as usize;
                Some((head + bit / 8, 1 << (bit % 8)))
            }
            _ => None,
        };
        Self {
            exchange: Some(exchange),
            flip,
            ..Self::plain(state, way)
        }
    }

    fn strike(&self) {
        self.exchange.iter().for_each(|of| self.state.strike(of));
    }

    /// Passes on the next bytes, with what they suffer.
    ///
    /// # Errors
    /// How the connection ends here, if it does.
    async fn pass(
        &mut self,
        mut bytes: Vec<u8>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Result<(), Ended> {
        let way = self.way as usize;
        let (start, latency) = (self.passed, self.state.latency[way]);
        if start == 0 && !latency.is_zero() {
            sleep(latency).await;
        }
        self.passed += bytes.len();
        let here = start..self.passed;
        if let Some((at, bit)) = self.flip
            && here.contains(&at)
        {
            bytes[at - start] ^= bit;
            self.strike();
        }
        let is_here = |of: Way, at: usize| of == self.way && here.contains(&at);
        match self.exchange.and_then(|exchange| exchange.fault) {
            Some(Fault::Stall {
                way: of,
                after,
                time,
            }) if is_here(of, after) => {
                let (first, rest) = bytes.split_at(after - start);
                self.write(first, to).await?;
                self.strike();
                sleep(time).await;
                self.write(rest, to).await
            }
            Some(Fault::Close { way: of, after }) if is_here(of, after) => {
                self.write(&bytes[..after - start], to).await?;
                self.strike();
                Err(Ended::Closed)
            }
            Some(Fault::Reset { way: of, after }) if is_here(of, after) => {
                self.write(&bytes[..after - start], to).await?;
                self.strike();
                Err(Ended::Reset)
            }
            Some(Fault::Drip {
                way: of,
                piece,
                pause,
            }) if of == self.way => {
                if start == 0 {
                    self.strike();
                }
                for part in bytes.chunks(piece.max(1)) {
                    self.write(part, to).await?;
                    sleep(pause).await;
                }
                Ok(())
            }
            Some(Fault::Gone) if is_here(Way::Down, 0) => {
                self.strike();
                self.state.presence.send_replace(Presence::Gone);
                Err(Ended::Closed)
            }
            Some(Fault::Silent) if is_here(Way::Down, 0) => {
                self.strike();
                self.state.presence.send_replace(Presence::Silent);
                // The connection is held, and nothing comes.
                std::future::pending().await
            }
            _ => self.write(&bytes, to).await,
        }
    }

    async fn write(&self, bytes: &[u8], to: &mut (impl AsyncWrite + Unpin)) -> Result<(), Ended> {
        self.state.passed[self.way as usize].fetch_add(bytes.len() as u64, Ordering::SeqCst);
        if to.write_all(bytes).await.is_ok() {
            return Ok(());
        }
        match self.way {
            // A worker that takes no more may have said why: that ends with its own side.
            Way::Up => std::future::pending().await,
            Way::Down => Err(Ended::Closed),
        }
    }
}
