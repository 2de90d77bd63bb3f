//! Bare requests to a worker: a client that says what it likes.

use std::time::Duration;

use lacuna_protocol::session::{Info, OpenSession, ReplyHeader, RunHeader, SessionKind, Work};
use lacuna_protocol::version::PROTOCOL;
use lacuna_wire::{HostTensor, Message};
use lacuna_worker::Options;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::workers::{RunningWorker, model};

/// What a test waits for at most; nothing takes nearly as long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What is answered at once comes within this, on the busiest machine.
pub const AT_ONCE: Duration = Duration::from_secs(15);

/// A client that says what it likes.
pub struct Caller {
    http: reqwest::Client,
    url: String,
    /// What it shows.
    pub token: Option<String>,
}

/// An answer that was read.
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// What came.
    pub body: Vec<u8>,
}

impl Answer {
    /// What the refusal says.
    #[track_caller]
    pub fn refusal(&self, status: u16) -> String {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status.as_u16(), status, "{text}");
        let value: Value = serde_json::from_slice(&self.body).unwrap();
        let error = value["error"].as_str().unwrap();
        assert!(!error.contains('\n'), "{error}");
        error.to_owned()
    }

    /// The one output of a piece of work that went well.
    #[track_caller]
    pub fn output(&self, sequence: u64, name: &str) -> HostTensor {
        let text = String::from_utf8_lossy(&self.body);
        assert_eq!(self.status, StatusCode::OK, "{text}");
        let mut reply = Message::<ReplyHeader>::decode(&self.body).unwrap();
        assert_eq!(reply.header.sequence, sequence);
        assert_eq!(reply.tensors.len(), 1);
        reply.take(name).unwrap().into_tensor(name).unwrap()
    }
}

impl Caller {
    /// To `worker`, without a token.
    pub fn new(worker: &RunningWorker) -> Self {
        Self {
            http: lacuna_orchestrator::fleet::line::http_client()
                .no_proxy()
                .build()
                .unwrap(),
            url: worker.url.clone(),
            token: None,
        }
    }

    /// The same with a token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// A request to a path.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends it, and reads the answer.
    pub async fn send(request: RequestBuilder) -> Answer {
        let response = request.send().await.unwrap();
        Answer {
            status: response.status(),
            body: response.bytes().await.unwrap().to_vec(),
        }
    }

    /// What a path answers.
    pub async fn get(&self, path: &str) -> Answer {
        Self::send(self.request(Method::GET, path)).await
    }

    /// What the worker says of itself.
    pub async fn info(&self) -> Info {
        serde_json::from_slice(&self.get("v1/info").await.body).unwrap()
    }

    /// Opens a session layer by layer, or tries to.
    pub async fn try_open(&self, protocol: u32, model: &str) -> Answer {
        let model = model.to_owned();
        let body = OpenSession {
            protocol,
            model,
            kind: SessionKind::Layers,
            picture: None,
        };
        Self::send(self.request(Method::POST, "v1/sessions").json(&body)).await
    }

    /// Opens a session for the model that the worker holds.
    pub async fn open(&self) -> String {
        let digest = &self.info().await.models[0].digest;
        let answer = self.try_open(PROTOCOL, digest).await;
        assert_eq!(answer.status, StatusCode::CREATED);
        let opened: Value = serde_json::from_slice(&answer.body).unwrap();
        opened["session"].as_str().unwrap().to_owned()
    }

    /// Closes a session.
    pub async fn close(&self, session: &str) -> Answer {
        let path = format!("v1/sessions/{session}");
        Self::send(self.request(Method::DELETE, &path)).await
    }

    /// Sends a piece of work.
    pub async fn run(&self, session: &str, body: Vec<u8>) -> Answer {
        let path = format!("v1/sessions/{session}/run");
        Self::send(self.request(Method::POST, &path).body(body)).await
    }
}

/// A convolution as work.
pub fn conv(layer: &str) -> Work {
    Work::Conv {
        layer: layer.to_owned(),
        odd: false,
    }
}

/// Normal numbers.
pub fn tensor(shape: &[usize], seed: u64) -> HostTensor {
    let mut rng = lacuna_orchestrator::noise::TorchRng::new(seed);
    HostTensor::new(shape, rng.randn(shape.iter().product())).unwrap()
}

/// A request with one piece of work.
pub fn message(sequence: u64, work: Work, inputs: &[(&str, HostTensor)]) -> Message<RunHeader> {
    let named = |(name, tensor): &(&str, HostTensor)| (format!("0.{name}"), tensor.clone().into());
    Message {
        header: RunHeader {
            sequence,
            work: vec![work],
        },
        tensors: inputs.iter().map(named).collect(),
    }
}

/// A request that any sd1 worker can do: five rows of the first convolution.
pub fn good(sequence: u64, seed: u64) -> Vec<u8> {
    let x = tensor(&[1, 4, 5, 3], seed);
    message(sequence, conv("conv_in"), &[("x", x)])
        .encode()
        .unwrap()
}

/// What [`good`] must give.
pub fn good_output(seed: u64) -> HostTensor {
    let x = tensor(&[1, 4, 5, 3], seed);
    let y = model("sd1").run(&conv("conv_in"), vec![x]).unwrap();
    y.into_tensor("y").unwrap()
}

/// Small limits, so that what is too large is small too.
pub fn small() -> Options {
    Options {
        max_latents: [1, 8, 8],
        ..Options::default()
    }
}

/// A connection to `worker`, of which nothing is said yet.
pub async fn connect(worker: &RunningWorker) -> TcpStream {
    let address = worker.url.trim_start_matches("http://");
    TcpStream::connect(address.trim_end_matches('/'))
        .await
        .unwrap()
}

/// What comes back for the `head` of a request, of whose body nothing is sent.
pub async fn answer_to(worker: &RunningWorker, head: &str) -> String {
    let mut stream = connect(worker).await;
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let mut len = 0;
    while !is_whole(&answer[..len]) {
        let read = timeout(AT_ONCE, stream.read(&mut answer[len..])).await;
        match read.expect("an answer at once").unwrap_or(0) {
            0 => break,
            more => len += more,
        }
    }
    String::from_utf8_lossy(&answer[..len]).into_owned()
}

/// Whether it is all that it says to be.
fn is_whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else {
        return false;
    };
    let said = head.split_once("content-length: ").map(|(_, rest)| rest);
    let said = said.and_then(|rest| rest.lines().next()?.parse().ok());
    body.len() >= said.unwrap_or(0_usize)
}
