//! The endpoint that Prometheus scrapes.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const MAX_CONNECTIONS: usize = 32;

/// A connection is closed when its next request takes longer to come.
const HEADER_TIMEOUT: Duration = Duration::from_secs(90);

/// Writes the page.
pub(crate) type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// A listener and its connections. None of them is left when `stop` returns.
pub(crate) struct PrometheusServer {
    asked: SocketAddr,
    address: SocketAddr,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl PrometheusServer {
    /// # Errors
    /// The address cannot be listened on.
    pub(crate) async fn bind(address: SocketAddr, page: Page) -> io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let server = Self { asked: address, address: listener.local_addr()?, stop: stop.clone(), tasks };
        server.tasks.spawn(serve(listener, page, stop));
        server.tasks.close();
        Ok(server)
    }

    /// As the settings have it.
    pub(crate) fn asked(&self) -> SocketAddr {
        self.asked
    }

    /// With the port that is really used.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for PrometheusServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn serve(listener: TcpListener, page: Page, stop: CancellationToken) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropped with this function, and its connections with it.
    let mut connections = JoinSet::new();
    loop {
        let accepted = async {
            let permit = Arc::clone(&room).acquire_owned().await;
            (permit, listener.accept().await)
        };
        // Cancel safe: a connection that is not accepted stays with the listener.
        let (permit, stream) = tokio::select! {
            () = stop.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            (permit, accepted) = accepted => match accepted {
                Ok((stream, _)) => (permit, stream),
                Err(error) => {
                    tracing::debug!(%error, "Prometheus connection could not be accepted");
                    // Out of descriptors, mostly: there is no use in trying at once.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        let page = Arc::clone(&page);
        connections.spawn(async move {
            let answer = service_fn(|request| std::future::ready(Ok::<_, Infallible>(answer(&request, &page))));
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIMEOUT)
                .serve_connection(TokioIo::new(stream), answer);
            if let Err(error) = connection.await {
                tracing::trace!(%error, "Prometheus connection ended");
            }
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, page: &Page) -> Response<Full<Bytes>> {
    let (status, body) = match (request.method(), request.uri().path()) {
        (&Method::GET | &Method::HEAD, "/metrics") => (StatusCode::OK, page()),
        (_, "/metrics") => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        _ => (StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}
