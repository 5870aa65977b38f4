//! A real OTLP receiver on loopback, which keeps what it is sent.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::Metric;
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::Span;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

const PATIENCE: Duration = Duration::from_secs(60);

/// What has arrived, in its order, each with whom it is from.
#[derive(Debug, Clone, Default)]
pub struct Received {
    pub spans: Vec<(Resource, Span)>,
    pub logs: Vec<(Resource, LogRecord)>,
    pub metrics: Vec<(Resource, Metric)>,
    /// Of each request.
    pub authorization: Vec<String>,
    /// How many log records each request brought.
    pub log_batches: Vec<usize>,
}

impl Received {
    pub fn traces(&mut self, request: ExportTraceServiceRequest) {
        for from in request.resource_spans {
            let resource = from.resource.unwrap_or_default();
            let spans = from.scope_spans.into_iter().flat_map(|by| by.spans);
            self.spans.extend(spans.map(|span| (resource.clone(), span)));
        }
    }

    pub fn logs(&mut self, request: ExportLogsServiceRequest) {
        let before = self.logs.len();
        for from in request.resource_logs {
            let resource = from.resource.unwrap_or_default();
            let records = from.scope_logs.into_iter().flat_map(|by| by.log_records);
            self.logs.extend(records.map(|record| (resource.clone(), record)));
        }
        self.log_batches.push(self.logs.len() - before);
    }

    pub fn metrics(&mut self, request: ExportMetricsServiceRequest) {
        for from in request.resource_metrics {
            let resource = from.resource.unwrap_or_default();
            let metrics = from.scope_metrics.into_iter().flat_map(|by| by.metrics);
            self.metrics.extend(metrics.map(|metric| (resource.clone(), metric)));
        }
    }

    #[must_use]
    pub fn span_names(&self) -> Vec<&str> {
        self.spans.iter().map(|(_, span)| span.name.as_str()).collect()
    }

    /// Bodies that are text.
    #[must_use]
    pub fn log_bodies(&self) -> Vec<&str> {
        self.logs.iter().filter_map(|(_, record)| text(record.body.as_ref()?.value.as_ref()?)).collect()
    }

    #[must_use]
    pub fn metric_names(&self) -> Vec<&str> {
        self.metrics.iter().map(|(_, metric)| metric.name.as_str()).collect()
    }
}

fn text(value: &any_value::Value) -> Option<&str> {
    if let any_value::Value::StringValue(text) = value { Some(text) } else { None }
}

/// An attribute of a resource that is text.
#[must_use]
pub fn attribute<'a>(resource: &'a Resource, key: &str) -> Option<&'a str> {
    let found = resource.attributes.iter().find(|attribute| attribute.key == key)?;
    text(found.value.as_ref()?.value.as_ref()?)
}

/// Keeps what its servers are sent. Clones are the same receiver.
#[derive(Debug, Clone, Default)]
pub struct OtlpReceiver(Arc<watch::Sender<Received>>);

/// A server; it ends when this is dropped.
#[derive(Debug)]
pub struct OtlpServer {
    pub address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for OtlpServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl OtlpReceiver {
    /// Serves gRPC at `address`, with whatever `server` was told about TLS.
    ///
    /// # Panics
    /// When nobody can listen there.
    pub async fn serve(&self, address: &str, mut server: Server) -> OtlpServer {
        let listener = TcpListener::bind(address).await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let server = server
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(LogsServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()));
        let serving = server.serve_with_incoming(TcpIncoming::from(listener));
        OtlpServer { address, task: tokio::spawn(async { serving.await.expect("a server") }) }
    }

    /// Takes one request, however it came.
    pub fn note<T>(&self, metadata: &MetadataMap, request: T, take: impl FnOnce(&mut Received, T)) {
        let authorization = metadata.get("authorization").and_then(|value| value.to_str().ok());
        let authorization = authorization.unwrap_or_default().to_owned();
        self.0.send_modify(|received| {
            received.authorization.push(authorization);
            take(received, request);
        });
    }

    /// What has arrived so far.
    #[must_use]
    pub fn received(&self) -> Received {
        self.0.borrow().clone()
    }

    /// Waits until what has arrived is what is `wanted`.
    ///
    /// # Panics
    /// When it is not in a minute.
    pub async fn until(&self, wanted: impl Fn(&Received) -> bool) -> Received {
        let mut changes = self.0.subscribe();
        let seen = tokio::time::timeout(PATIENCE, changes.wait_for(|received| wanted(received))).await;
        match seen {
            Ok(seen) => seen.expect("a sender").clone(),
            Err(_) => panic!("received only {:?}", self.0.borrow()),
        }
    }

    fn keep<T>(&self, request: Request<T>, take: impl FnOnce(&mut Received, T)) {
        let (metadata, _, request) = request.into_parts();
        self.note(&metadata, request, take);
    }
}

#[tonic::async_trait]
impl TraceService for OtlpReceiver {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(request, Received::traces);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl LogsService for OtlpReceiver {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        self.keep(request, Received::logs);
        Ok(Response::new(ExportLogsServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for OtlpReceiver {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.keep(request, Received::metrics);
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}
