//! The dialogue with one worker.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::Bytes;
use lacuna_protocol::session::{
    AdvanceHeader, Info, OpenSession, ReplyHeader, RunHeader, SessionKind,
};
use lacuna_protocol::shares::{MultiplyHeader, PRODUCT, SHARE};
use lacuna_protocol::version::SPOKEN;
use lacuna_shares::stream::Masks;
use lacuna_wire::{Dtype, Message, Payload};
use reqwest::Method;
use serde::Serialize;
use tracing::{Instrument, Span, debug_span};

use super::Part;
use super::check::{self, Again, Checker};
use super::config::WorkerConfig;
use super::line::{Answer, Line, MARGIN};
use super::session::Session;
use super::tally::{Kind, Size, Tally};
use super::tap::Tap;
use crate::error::{Error, Result};
use crate::interrupt;

/// How long a worker may take to load a model, and how often it is asked meanwhile.
const LOADING: Duration = Duration::from_secs(600);
const PAUSE: Duration = Duration::from_secs(1);

/// What a worker's walk hands out at an exchange.
#[derive(Debug)]
pub struct Handed {
    /// The exchange's label.
    pub at: String,
    /// The tensors, by name.
    pub tensors: HashMap<String, Payload>,
    /// Of the message that they came in.
    pub size: Size,
}

/// Products of layers' weights with a share of their input, as a worker is asked for them.
#[derive(Clone, Debug)]
pub struct Product {
    /// Under which kind of layer they count.
    pub kind: Kind,
    /// The layers.
    pub layers: Vec<String>,
    /// Batch entries, rows and columns of the input.
    pub input: [usize; 3],
    /// Rows and columns that the input is enlarged to before.
    pub enlarged: Option<[usize; 2]>,
    /// Bands in which a share goes and the answer comes.
    pub bands: usize,
    /// Bytes of the answer's words.
    pub bytes: usize,
}

/// A connection to one worker.
pub struct Client {
    line: Line,
    session: Option<Session>,
    sequence: u64,
    /// Its speed in 10^9 multiplications and additions a second, by what it says.
    gflops: Option<f64>,
    /// What its session is.
    kind: Option<SessionKind>,
    /// Who looks at what it answers.
    checker: Option<Checker>,
    /// What was sent to it and what it did.
    pub tally: Tally,
    /// The stream of its shares, where it draws them from a seed.
    pub masks: Option<Masks>,
    /// Who keeps a copy of what is sent to it: an audit.
    pub tap: Option<Tap>,
}

impl Client {
    /// A client that has not said anything yet.
    ///
    /// # Errors
    /// [`Error::WorkerUnreachable`] when the system gives no HTTP client.
    pub fn new(worker: &WorkerConfig) -> Result<Self> {
        Ok(Self {
            line: Line::new(worker)?,
            tally: Tally::new(worker),
            masks: None,
            tap: None,
            session: None,
            sequence: 0,
            gflops: None,
            kind: None,
            checker: None,
        })
    }

    /// What the worker says of itself, and the time that one round trip took.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn info(&self) -> Result<(Info, Duration)> {
        self.line.info().await
    }

    /// Sends `up` bytes that mean nothing and has as many as `down` sent back.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn probe(&self, up: usize, down: usize) -> Result<()> {
        let path = ["v1", "probe", &down.to_string()];
        let request = self.line.request(Method::POST, &path).body(vec![0; up]);
        self.line.send_for(request, down + MARGIN).await?;
        Ok(())
    }

    /// Opens a session of `kind` for the model of `digest`, as a lane of `picture`. It is closed when this is
    /// dropped, if not before.
    ///
    /// # Errors
    /// [`Error::WorkerUnreachable`], [`Error::WorkerRefused`], [`Error::WorkerToken`],
    /// [`Error::WorkerProtocol`], [`Error::WorkerModel`], [`Error::WorkerReply`] or [`Error::Interrupted`].
    pub async fn open(
        &mut self,
        digest: &str,
        kind: SessionKind,
        picture: Option<String>,
    ) -> Result<()> {
        let (info, _) = self.info().await?;
        let protocol = self.line.agree(&info, kind.since())?;
        self.line.check_model(&info, digest)?;
        self.line.agreed(protocol);
        self.gflops = info.gflops;
        self.kind = Some(kind.clone());
        let body = OpenSession {
            protocol,
            model: digest.to_owned(),
            kind,
            picture,
        };
        let line = self.line.clone();
        // A task of its own: were this left while the worker opens a session, nobody would know which.
        let opening = tokio::spawn(async move { opened(&line, &body).await });
        let opened = interrupt::unless_asked(async {
            let failed = |e: tokio::task::JoinError| Error::Request(format!("opening: {e}"));
            opening.await.map_err(failed)?
        });
        let session = opened.await?;
        let (worker, session_name) = (self.line.url(), short_name(&session.name));
        tracing::debug!(%worker, session = session_name, "opened a session");
        self.session = Some(session);
        Ok(())
    }

    /// Has its work done here again as far as `again` says, and compared.
    pub fn check_by(&mut self, again: &Again) {
        let kind = self.kind.clone();
        self.checker = kind.map(|kind| Checker::new(again.clone(), kind));
    }

    /// A U-Net call begins.
    ///
    /// # Errors
    /// As [`Checker::begin_call`].
    pub fn begin_call(&mut self) -> Result<()> {
        self.checker.as_mut().map_or(Ok(()), Checker::begin_call)
    }

    /// That the tensors that it answered, `of` a layer or an exchange, are the `right` ones.
    ///
    /// # Errors
    /// [`Error::WorkerWrong`].
    fn check(
        &self,
        of: &str,
        right: Option<&HashMap<String, Payload>>,
        got: &HashMap<String, Payload>,
    ) -> Result<()> {
        match right.and_then(|right| check::worst(right, got)) {
            None => Ok(()),
            Some((name, apart)) => Err(Error::WorkerWrong {
                worker: self.line.url().to_string(),
                layer: format!("{name} of {of}"),
                apart,
            }),
        }
    }

    /// What a U-Net call of so many multiplications and additions should take it.
    pub fn expect(&self, flop: u64) {
        if let Some(gflops) = self.gflops {
            let seconds = flop as f64 / (gflops * 1e9);
            // So slow that nothing is expected of it.
            let call = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
            self.line.pace().expect(call);
        }
    }

    /// The version of the protocol to speak with the worker.
    ///
    /// # Errors
    /// [`Error::WorkerProtocol`] when there is none that both sides speak.
    pub fn agree(&self, info: &Info) -> Result<u32> {
        self.line.agree(info, SPOKEN.lowest)
    }

    /// That the worker holds the model of `digest`.
    ///
    /// # Errors
    /// [`Error::WorkerModel`].
    pub fn check_model(&self, info: &Info, digest: &str) -> Result<()> {
        self.line.check_model(info, digest)
    }

    /// Around the next request: lines of the log that are of one session can be told by it, on both sides.
    fn span(&self) -> Span {
        let session = self.session.as_ref().map_or("", |s| short_name(&s.name));
        debug_span!("exchange", session, sequence = self.sequence)
    }

    /// Path of a request of the session.
    fn path<'a>(&'a self, what: &'a str) -> Result<[&'a str; 4]> {
        match &self.session {
            Some(session) => Ok(["v1", "sessions", &session.name, what]),
            None => Err(Error::Request("no session is open".into())),
        }
    }

    /// Has the worker do its part of an exchange; gives each piece's output, in order.
    ///
    /// # Errors
    /// As [`Self::open`]; [`Error::WorkerReply`] when an output is not what was asked for.
    pub async fn run(&mut self, kind: Kind, part: Part) -> Result<Vec<Payload>> {
        if let Some(tap) = &self.tap {
            tap.keep_part(&part);
        }
        self.sequence += 1;
        let mut wanted = Vec::with_capacity(part.len());
        let mut reply_bytes = MARGIN;
        let mut message = Message {
            header: RunHeader {
                sequence: self.sequence,
                work: Vec::with_capacity(part.len()),
            },
            tensors: HashMap::new(),
        };
        for (i, piece) in part.into_iter().enumerate() {
            for (name, input) in piece.work.inputs().iter().zip(piece.inputs) {
                message.tensors.insert(format!("{i}.{name}"), input.into());
            }
            let dtype = piece.work.output_dtype();
            reply_bytes += piece.output.iter().product::<usize>() * dtype.bitsize() / 8;
            wanted.push((format!("{i}.{}", piece.work.output()), dtype, piece.output));
            message.header.work.push(piece.work);
        }
        let (body, size) = packed(&message)?;
        let again = async {
            match &self.checker {
                Some(checker) => checker.run(&message).await,
                None => Ok(None),
            }
        };
        let path = self.path("run")?;
        let sent = self.line.send_again(&path, &body, reply_bytes);
        let sent = sent.instrument(self.span());
        let (reply, right) = futures::join!(sent, again);
        let (reply, right) = (reply?, right?);
        self.tally.count_request(kind, size);
        let names: Vec<String> = wanted.iter().map(|(name, ..)| name.clone()).collect();
        let (outputs, size) = self.read(&reply, wanted)?;
        if right.is_some() {
            let got = names.into_iter().zip(outputs.iter().cloned()).collect();
            self.check("its pieces of work", right.as_ref(), &got)?;
        }
        self.tally.count_reply(kind, size);
        Ok(outputs)
    }

    /// Brings the worker's walk what it waits for at the exchange `at`; gives what it hands out next,
    /// which takes at most `limit` bytes beside its header. What comes back is of another exchange, so
    /// only the request is counted here.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn advance(
        &mut self,
        kind: Kind,
        at: String,
        tensors: HashMap<String, Payload>,
        limit: usize,
    ) -> Result<Handed> {
        if let Some(tap) = &self.tap {
            tap.keep_message(&at, &tensors);
        }
        self.sequence += 1;
        let sequence = self.sequence;
        let header = AdvanceHeader { sequence, at };
        let message = Message { header, tensors };
        let (body, size) = packed(&message)?;
        let again = async {
            match &self.checker {
                Some(checker) => checker.advance(&message.header.at, &message.tensors).await,
                None => Ok(None),
            }
        };
        let path = self.path("advance")?;
        let sent = self.line.send_again(&path, &body, limit + MARGIN);
        let sent = sent.instrument(self.span());
        let (reply, right) = futures::join!(sent, again);
        let (reply, right) = (reply?, right?);
        self.tally.count_request(kind, size);
        let nonsense = |e: lacuna_wire::Error| self.nonsense(&e.to_string());
        let message = Message::<AdvanceHeader>::decode(&reply).map_err(nonsense)?;
        self.check_sequence(message.header.sequence)?;
        if let Some(right) = &right {
            let tensors = Some(&right.tensors);
            self.check(&right.header.at, tensors, &message.tensors)?;
        }
        let size = Size {
            bytes: reply.len() + self.line.digest_bytes(),
            payload: message.payload_bytes(),
        };
        Ok(Handed {
            at: message.header.at,
            tensors: message.tensors,
            size,
        })
    }

    /// Has the worker multiply layers' weights with a share of their input: the one that is sent along, or the next of those
    /// that it draws. Gives the products' words.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn multiply(&mut self, product: &Product, share: Option<Vec<u8>>) -> Result<Vec<u8>> {
        if let Some(tap) = &self.tap {
            tap.keep_share(product, share.as_deref());
        }
        self.sequence += 1;
        let header = MultiplyHeader {
            sequence: self.sequence,
            layers: product.layers.clone(),
            input: product.input,
            enlarged: product.enlarged,
            bands: product.bands,
        };
        let share = share.map(|words| (SHARE.to_owned(), Payload::of_codes(words)));
        let tensors: HashMap<_, _> = share.into_iter().collect();
        let (body, size) = packed(&Message { header, tensors })?;
        let path = self.path("multiply")?;
        let answer = Answer {
            limit: product.bytes + MARGIN,
            streamed: true,
        };
        let sent = self.line.send_again(&path, &body, answer);
        let reply = sent.instrument(self.span()).await?;
        self.tally.count_request(product.kind, size);
        let wanted = vec![(PRODUCT.to_owned(), Dtype::U8, vec![product.bytes])];
        let (outputs, size) = self.read(&reply, wanted)?;
        self.tally.count_reply(product.kind, size);
        match outputs.into_iter().next() {
            Some(Payload::Codes { data, .. }) => Ok(data),
            _ => Err(self.nonsense("no words")),
        }
    }

    /// The way to the worker.
    pub fn line(&self) -> &Line {
        &self.line
    }

    /// Number of requests in the session so far.
    pub fn asked(&self) -> u64 {
        self.sequence
    }

    fn check_sequence(&self, answered: u64) -> Result<()> {
        if answered == self.sequence {
            return Ok(());
        }
        Err(self.nonsense(&format!("it answered {answered} to {}", self.sequence)))
    }

    /// An error about what the worker answered.
    pub fn nonsense(&self, reason: &str) -> Error {
        self.line.nonsense(reason)
    }

    /// Closes the session, if the worker can be told, and gives the account.
    pub async fn close(self) -> Tally {
        if let Some(session) = self.session {
            session.close().await;
        }
        self.tally
    }

    /// The tensors `wanted` of a reply, each of its number type and shape, and the reply's size.
    fn read(
        &self,
        bytes: &[u8],
        wanted: Vec<(String, Dtype, Vec<usize>)>,
    ) -> Result<(Vec<Payload>, Size)> {
        let nonsense = |e: lacuna_wire::Error| self.nonsense(&e.to_string());
        let mut reply = Message::<ReplyHeader>::decode(bytes).map_err(nonsense)?;
        self.check_sequence(reply.header.sequence)?;
        let size = Size {
            bytes: bytes.len() + self.line.digest_bytes(),
            payload: reply.payload_bytes(),
        };
        let outputs = wanted
            .into_iter()
            .map(|(name, dtype, shape)| {
                let payload = reply.take(&name).map_err(nonsense)?;
                if payload.dtype() != dtype {
                    let reason = format!("{name} is {:?}, not {dtype:?}", payload.dtype());
                    return Err(self.nonsense(&reason));
                }
                if payload.shape() == shape {
                    return Ok(payload);
                }
                Err(nonsense(lacuna_wire::Error::WrongShape {
                    name,
                    want: shape,
                    got: payload.shape().to_vec(),
                }))
            })
            .collect::<Result<_>>()?;
        Ok((outputs, size))
    }
}

/// A session, once the worker has loaded the model from its store.
async fn opened(line: &Line, body: &OpenSession) -> Result<Session> {
    let start = Instant::now();
    loop {
        match line.clone().open(body).await {
            Err(error) if error.is_of_code("loading") && start.elapsed() < LOADING => {
                interrupt::pause(PAUSE).await?;
            }
            other => return other,
        }
    }
}

/// The beginning of a session's name, enough to tell it from others and too little to use it.
fn short_name(name: &str) -> &str {
    name.get(..8).unwrap_or(name)
}

/// A message as bytes, and its size.
fn packed<H: Serialize>(message: &Message<H>) -> Result<(Bytes, Size)> {
    let body = Bytes::from(message.encode()?);
    let size = Size {
        bytes: body.len(),
        payload: message.payload_bytes(),
    };
    Ok((body, size))
}
