//! Real HTTP servers with known idle timeouts, each a process on a separate loopback address.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command},
    sync::OnceLock,
    time::Duration,
};

use rcgen::{CertificateParams, KeyPair};
use tokio::net::TcpStream;

use super::{caddy::address, cluster, eventually, leashed, service};

/// Server process that ends on drop.
pub struct Server {
    /// Address on which the server listens.
    pub listen: SocketAddr,
    dir: PathBuf,
    process: Child,
}

impl Server {
    pub fn url(&self) -> String {
        format!("http://{}/", self.listen)
    }

    /// Returns the URL of a server with TLS, whose certificate is for `localhost`.
    pub fn secure_url(&self) -> String {
        format!("https://{}/", self.listen)
    }

    /// Returns the certificate of the server, in PEM.
    pub fn ca(&self) -> PathBuf {
        self.dir.join("cert.pem")
    }

    /// Starts a program with a file. `LISTEN`, `IP`, `PORT` and `DIR` are replaced in the file and in the arguments.
    async fn start(program: impl AsRef<Path>, arguments: &[&str], file: &str) -> Self {
        let listen = SocketAddr::from((address(), 8080));
        let dir = std::env::temp_dir().join(format!("idleconn-server-{}", listen.ip()));
        std::fs::create_dir_all(&dir).unwrap();
        certificate(&dir);
        let filled = |text: &str| {
            let dir = dir.to_str().unwrap();
            text.replace("LISTEN", &listen.to_string())
                .replace("IP", &listen.ip().to_string())
                .replace("PORT", &listen.port().to_string())
                .replace("DIR", dir)
        };
        std::fs::write(dir.join("config"), filled(file)).unwrap();
        std::fs::write(dir.join("config.yaml"), filled(file)).unwrap();
        let mut command = leashed(program.as_ref());
        command.args(arguments.iter().map(|argument| filled(argument)));
        command.env("XDG_CONFIG_HOME", &dir).env("XDG_DATA_HOME", &dir);
        let process = command.spawn().unwrap();
        let server = Self { listen, dir, process };
        eventually("the server listens", || async { TcpStream::connect(listen).await.ok() }).await;
        server
    }

    /// Starts Go's net/http, in examples/go-service.
    pub async fn go(idle: Duration) -> Self {
        let file = format!("server: {{IdleTimeout: {}ms}}\n", idle.as_millis());
        let arguments = ["-once", "-listen=LISTEN", "-admin=IP:8081", "-config=DIR/config.yaml"];
        Self::start(service::program(), &arguments, &file).await
    }

    /// Starts Node's http, which advertises `idle` in whole seconds and closes one second later. `more` is a line of the program.
    pub async fn node(idle: Duration, more: &str) -> Self {
        let program = format!(
            "import http from 'node:http';\nconst server = http.createServer((_, answer) => answer.end('ok\\n'));\n\
             server.keepAliveTimeout = {};\nserver.keepAliveTimeoutBuffer = 1000;\n{more}\nserver.listen(PORT, 'IP');\n",
            idle.as_millis()
        );
        Self::start("node", &["--input-type=module", "--eval", &program], "").await
    }

    /// Starts nginx. `http` and `server` are directives of these blocks.
    pub async fn nginx(listen: &str, http: &str, server: &str) -> Self {
        let mut paths = String::new();
        for (name, folder) in [("client_body", "b"), ("proxy", "p"), ("fastcgi", "f"), ("uwsgi", "u"), ("scgi", "s")] {
            let _ = write!(paths, "{name}_temp_path DIR/{folder}; ");
        }
        let file = format!(
            "daemon off; pid DIR/pid; error_log DIR/error; worker_processes 1; events {{ worker_connections 4096; }}\n\
             http {{ access_log off; {paths}\n{http}\nserver {{ listen LISTEN{listen}; ssl_certificate DIR/cert.pem; ssl_certificate_key DIR/key.pem;\n\
             {server}\nlocation = / {{ return 200 ok; }} }} }}\n"
        );
        Self::start("nginx", &["-c", "DIR/config", "-p", "DIR", "-e", "DIR/error"], &file).await
    }

    /// Starts HAProxy, which answers requests itself. `bind` is the text after the address.
    pub async fn haproxy(idle: Duration, bind: &str) -> Self {
        let file = format!(
            "global\n maxconn 1000\ndefaults\n mode http\n timeout connect 5s\n timeout server 30s\n timeout client {0}ms\n timeout http-keep-alive {0}ms\n\
             frontend in\n bind LISTEN{bind}\n http-request return status 200 content-type text/plain string ok\n",
            idle.as_millis()
        );
        Self::start("haproxy", &["-db", "-q", "-f", "DIR/config"], &file).await
    }

    /// Starts Caddy with TLS, HTTP/1.1 and HTTP/2.
    pub async fn caddy(idle: Duration) -> Self {
        let file = format!(
            r#"{{"admin": {{"disabled": true}}, "logging": {{"logs": {{"default": {{"level": "ERROR"}}}}}}, "apps": {{
                "tls": {{"certificates": {{"load_files": [{{"certificate": "DIR/cert.pem", "key": "DIR/key.pem"}}]}}}},
                "http": {{"servers": {{"web": {{"listen": ["LISTEN"], "idle_timeout": "{}ms", "tls_connection_policies": [{{}}],
                    "automatic_https": {{"disable": true}}, "routes": [{{"handle": [{{"handler": "static_response", "body": "ok"}}]}}]}}}}}}}}}}"#,
            idle.as_millis()
        );
        Self::start(cluster::tool("caddy"), &["run", "--config", "DIR/config"], &file).await
    }

    /// Starts Envoy, with TLS if `secure`. Envoy closes HTTP/1.1 connections when `drain` has passed after `idle`.
    pub async fn envoy(idle: Duration, drain: Duration, secure: bool) -> Self {
        let tls = r#", "transport_socket": {"name": "tls", "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext", "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [{"certificate_chain": {"filename": "DIR/cert.pem"}, "private_key": {"filename": "DIR/key.pem"}}]}}}"#;
        let file = format!(
            r#"{{"static_resources": {{"listeners": [{{"name": "in", "address": {{"socket_address": {{"address": "IP", "port_value": PORT}}}},
                "filter_chains": [{{"filters": [{{"name": "http", "typed_config": {{
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": "in", "codec_type": "AUTO", "drain_timeout": "{}s", "delayed_close_timeout": "0s", "common_http_protocol_options": {{"idle_timeout": "{}s"}},
                    "route_config": {{"virtual_hosts": [{{"name": "all", "domains": ["*"], "routes": [
                        {{"match": {{"prefix": "/"}}, "direct_response": {{"status": 200, "body": {{"inline_string": "ok"}}}}}}]}}]}},
                    "http_filters": [{{"name": "router", "typed_config": {{"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}]
                }}}}]{}}}]}}]}}}}"#,
            drain.as_secs_f64(),
            idle.as_secs_f64(),
            if secure { tls } else { "" },
        );
        Self::start(envoy(), &["-c", "DIR/config.yaml", "--concurrency", "1", "--disable-hot-restart", "-l", "error"], &file)
            .await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        let _ = self.process.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Returns the pinned Envoy, which is installed once.
fn envoy() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let root = Path::new(cluster::ROOT);
        let installed = Command::new(root.join("tests/tools/venv"))
            .args(["envoy", "tests/envoy/requirements.txt"])
            .current_dir(root)
            .output();
        let output = installed.unwrap();
        assert!(output.status.success(), "Envoy cannot be installed: {}", String::from_utf8_lossy(&output.stderr));
        Path::new(String::from_utf8(output.stdout).unwrap().lines().last().unwrap()).join("envoy")
    })
}

/// Creates a self-signed certificate for `localhost`.
fn certificate(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
    std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
    std::fs::write(dir.join("both.pem"), certificate.pem() + &key.serialize_pem()).unwrap();
}
