//! The accept loop: connections within limits, until everybody who was in has ended.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::response::Response;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper_util::rt::TokioIo;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};

use crate::ServeError;
use crate::routes::router;
use crate::socket::{Patience, Phase, Socket};
use crate::state::State;

/// Time to look again, where nothing tells.
const GLANCE: Duration = Duration::from_millis(20);
/// How long answers that are written already may take to be read.
const LAST_BYTES: Duration = Duration::from_secs(5);
/// After an error of `accept`: no file descriptors are left, or a client left at once.
const BACK_OFF: Duration = Duration::from_millis(50);
/// Most header fields of a request, and most bytes of them all.
const HEADERS: usize = 100;
const HEADER_BYTES: usize = 16 << 10;
/// What the system may hold of an answer for a client that does not read it; Linux takes twice of it.
const SEND_BYTES: usize = 64 << 10;

/// Who tells a server to stop.
#[derive(Debug)]
pub enum Stop {
    /// SIGTERM and SIGINT.
    Signals,
    /// A message on this channel.
    Channel(mpsc::UnboundedReceiver<()>),
}

enum Told {
    Signals { term: Signal, interrupt: Signal },
    Channel(mpsc::UnboundedReceiver<()>),
}

impl Told {
    fn new(stop: Stop) -> std::io::Result<Self> {
        Ok(match stop {
            Stop::Signals => Self::Signals {
                term: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
            },
            Stop::Channel(channel) => Self::Channel(channel),
        })
    }

    async fn again(&mut self) {
        match self {
            Self::Signals { term, interrupt } => {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = interrupt.recv() => {}
                }
            }
            Self::Channel(channel) => {
                if channel.recv().await.is_none() {
                    std::future::pending::<()>().await;
                }
            }
        }
    }
}

/// Serves until it is told to stop and whoever was in has ended.
pub(crate) fn serve(
    state: &Arc<State>,
    listener: TcpListener,
    stop: Stop,
) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(state.options.threads.max(1))
        // Work that would hold up clients: tokens of texts, chats, long answers.
        .max_blocking_threads(state.options.workers.max(1))
        // Tokenizers and templates of strangers recurse.
        .thread_stack_size(8 << 20)
        .thread_name("http")
        .enable_all()
        .build()?;
    let served = runtime.block_on(accept(state, listener, stop));
    runtime.shutdown_background();
    served
}

async fn accept(state: &Arc<State>, listener: TcpListener, stop: Stop) -> Result<(), ServeError> {
    if matches!(stop, Stop::Signals) && state.options.access.reload.is_some() {
        let hangup = signal(SignalKind::hangup())?;
        tokio::spawn(reload(Arc::clone(state), hangup));
    }
    let mut told = Told::new(stop)?;
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let connections = Arc::new(Semaphore::new(state.options.connections));
    let graceful = GracefulShutdown::new();
    let mut http = http1::Builder::new();
    // Time is the socket's matter: it knows headers from a wait for the next request.
    http.header_read_timeout(None)
        .max_headers(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .half_close(false);
    let app = router(state);
    let patience = Patience {
        header: state.options.header_timeout,
        idle: state.options.idle_timeout,
        write: state.options.write_timeout,
    };

    // When whoever is in is cut off, once it drains.
    let mut drains_until = None;
    let mut result = Ok(());
    loop {
        let connection = async {
            // Never closed.
            let permit = Arc::clone(&connections).acquire_owned().await;
            (listener.accept().await, permit)
        };
        tokio::select! {
            (accepted, permit) = connection => {
                let Ok((socket, _)) = accepted else {
                    tokio::time::sleep(BACK_OFF).await;
                    continue;
                };
                // Tokens are small and should not wait for one another.
                let _ = socket.set_nodelay(true);
                // What a client does not read lies here, in its mailbox, and nowhere else.
                let _ = SockRef::from(&socket).set_send_buffer_size(SEND_BYTES);
                let phase = Phase::new();
                let socket = Socket::new(socket, phase.clone(), patience);
                let service = Connection { app: TowerToHyperService::new(app.clone()), phase };
                let connection = http.serve_connection(TokioIo::new(socket), service);
                let connection = graceful.watch(connection);
                let open = state.engine.metrics.open();
                tokio::spawn(async move {
                    // A client that leaves or talks nonsense is no news.
                    let _ = connection.await;
                    drop((permit, open));
                });
            }
            () = told.again() => {
                if drains_until.is_some() {
                    return Err(ServeError::Cut(state.flying()));
                }
                drains_until = Some(Instant::now() + state.options.drain_timeout);
                state.drain();
                // Full or gone: then it is told below, or has nothing left to do.
                let _ = state.engine.drain();
            }
            () = tokio::time::sleep(GLANCE), if drains_until.is_some() => {
                let _ = state.engine.drain();
                if state.flying() == 0 {
                    break;
                }
                if drains_until.is_some_and(|until| Instant::now() >= until) {
                    // Each is told so, and its connection closes below.
                    state.cut();
                    break;
                }
            }
            () = dead(state) => {
                result = Err(ServeError::Engine);
                break;
            }
        }
    }
    drop(listener);
    // Connections that wait for another request close; answers are written to their end.
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(LAST_BYTES) => {}
        () = told.again() => {}
    }
    result
}

/// Reads the keys again whenever it is told to.
async fn reload(state: Arc<State>, mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        let state = Arc::clone(&state);
        // Files are read; a mistake in them is told there.
        let _ = tokio::task::spawn_blocking(move || state.tenants.reload()).await;
    }
}

/// What answers on one connection.
struct Connection {
    app: TowerToHyperService<Router>,
    phase: Phase,
}

impl Service<Request<Incoming>> for Connection {
    type Response = Response;
    type Error = Infallible;
    type Future = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Future;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        self.phase.begin();
        request.extensions_mut().insert(self.phase.clone());
        self.app.call(request)
    }
}

/// Returns when the engine has died.
async fn dead(state: &State) {
    while !state.engine.snapshot().dead {
        tokio::time::sleep(10 * GLANCE).await;
    }
}
