//! A connection that fails: a proxy before a worker, which cuts it at a chosen request.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::workers::is_work;

/// What happens at the chosen request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The worker has done the work, but the connection is lost before the user hears of it.
    BeforeReply,
    /// The connection is lost after so many bytes of the reply.
    WithinReply(usize),
    /// The worker is gone, then and for good.
    ForGood,
    /// The worker's machine is cut off, then and for good: connections stay, and nothing more is said.
    Silent,
}

/// A proxy on a port that the system chooses.
pub struct Proxy {
    /// Where it listens.
    pub url: String,
    state: Arc<State>,
}

struct State {
    worker: SocketAddr,
    failure: Failure,
    /// The request that fails, counted from 1 over pieces of work.
    at: usize,
    runs: AtomicUsize,
    /// The chosen request has come, so the next bytes from the worker are its reply.
    due: AtomicBool,
    gone: AtomicBool,
    silent: AtomicBool,
    failures: AtomicUsize,
    /// Ends of open connections, to cut them when the worker is gone.
    open: Mutex<Vec<TcpStream>>,
}

impl Proxy {
    /// A proxy before the worker at `url` that fails at its `at`-th piece of work.
    pub fn start(url: &str, at: usize, failure: Failure) -> Self {
        let address = url.strip_prefix("http://").unwrap().trim_end_matches('/');
        let state = Arc::new(State {
            worker: address.parse().unwrap(),
            failure,
            at,
            runs: AtomicUsize::new(0),
            due: AtomicBool::new(false),
            gone: AtomicBool::new(false),
            silent: AtomicBool::new(false),
            failures: AtomicUsize::new(0),
            open: Mutex::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let accepting = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming() {
                if accepting.silent.load(Ordering::SeqCst) {
                    // Taken, and forgotten.
                    accepting.open.lock().unwrap().push(client.unwrap());
                    continue;
                }
                if accepting.gone.load(Ordering::SeqCst) {
                    // Dropping the connection and the listener is what a dead machine does.
                    return;
                }
                accepting.join(client.unwrap());
            }
        });
        Self { url, state }
    }

    /// How often it failed.
    pub fn failures(&self) -> usize {
        self.state.failures.load(Ordering::SeqCst)
    }

    /// How many pieces of work came, repeated ones too.
    pub fn runs(&self) -> usize {
        self.state.runs.load(Ordering::SeqCst)
    }
}

impl State {
    /// Connects a client with the worker: a thread for each direction.
    fn join(self: &Arc<Self>, client: TcpStream) {
        let worker = TcpStream::connect(self.worker).unwrap();
        for stream in [&client, &worker] {
            stream.set_nodelay(true).unwrap();
            self.open.lock().unwrap().push(stream.try_clone().unwrap());
        }
        let (state, from, to) = (
            self.clone(),
            client.try_clone().unwrap(),
            worker.try_clone().unwrap(),
        );
        std::thread::spawn(move || state.pass_requests(from, to));
        let state = self.clone();
        std::thread::spawn(move || state.pass_replies(worker, client));
    }

    fn pass_requests(&self, mut client: TcpStream, mut worker: TcpStream) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = client.read(&mut buffer) {
            // A client asks once the last answer is there, so a request begins a read.
            let bytes = &buffer[..read];
            let head = String::from_utf8_lossy(&bytes[..read.min(200)]);
            let line = head.lines().next().unwrap_or_default();
            let path = line
                .strip_prefix("POST ")
                .and_then(|rest| rest.split(' ').next());
            if path.is_some_and(is_work) {
                let number = self.runs.fetch_add(1, Ordering::SeqCst) + 1;
                if number == self.at {
                    self.due.store(true, Ordering::SeqCst);
                }
            }
            if worker.write_all(bytes).is_err() {
                break;
            }
        }
        close(&[&client, &worker]);
    }

    fn pass_replies(&self, mut worker: TcpStream, mut client: TcpStream) {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(read @ 1..) = worker.read(&mut buffer) {
            let mut bytes = &buffer[..read];
            let fails = self.due.swap(false, Ordering::SeqCst);
            if fails {
                self.failures.fetch_add(1, Ordering::SeqCst);
                match self.failure {
                    Failure::Silent => {
                        self.silent.store(true, Ordering::SeqCst);
                        continue;
                    }
                    Failure::BeforeReply => break,
                    Failure::WithinReply(part) => bytes = &bytes[..part.min(read)],
                    Failure::ForGood => {
                        self.gone.store(true, Ordering::SeqCst);
                        let open = self.open.lock().unwrap();
                        close(&open.iter().collect::<Vec<_>>());
                        break;
                    }
                }
            }
            if self.silent.load(Ordering::SeqCst) {
                continue;
            }
            if client.write_all(bytes).is_err() || fails {
                break;
            }
        }
        close(&[&client, &worker]);
    }
}

/// Ends connections; one that has ended already is as good.
fn close(streams: &[&TcpStream]) {
    for stream in streams {
        let _ = stream.shutdown(Shutdown::Both);
    }
}
