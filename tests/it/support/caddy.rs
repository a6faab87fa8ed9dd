//! Real Caddy on a separate loopback address.

use std::{
    io::Write as _,
    net::Ipv4Addr,
    path::PathBuf,
    process::Child,
    sync::atomic::{AtomicU32, Ordering},
};

use serde_json::{Value as Json, json};

use super::{cluster, eventually, leashed};

/// Returns a loopback address that no other test uses. 127.96.0.0/16 is the range of Services.
pub fn address() -> Ipv4Addr {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    Ipv4Addr::new(
        127,
        130 + u8::try_from(std::process::id() % 100).unwrap(),
        u8::try_from(n / 250).unwrap(),
        u8::try_from(n % 250 + 1).unwrap(),
    )
}

pub struct Caddy {
    pub ip: Ipv4Addr,
    config: PathBuf,
    process: Option<Child>,
    port: u16,
}

impl Caddy {
    /// Starts Caddy with these servers and waits until it answers. `IP:` in them stands for its address.
    pub async fn start(servers: Json) -> Self {
        Self::with_admin(servers, 2019, &json!({"listen": "IP:2019", "origins": ["IP:2019"]})).await
    }

    /// Starts Caddy with these settings of its admin API, which listens on this port.
    pub async fn with_admin(servers: Json, port: u16, admin: &Json) -> Self {
        let ip = address();
        let mut admin = admin.clone();
        admin["config"] = json!({"persist": false});
        let config = json!({
            "admin": admin,
            "apps": {"http": {"servers": servers}},
            "logging": {"logs": {"default": {"level": "ERROR"}}},
        });
        let path = std::env::temp_dir().join(format!("idleconn-caddy-{ip}.json"));
        std::fs::File::create(&path).unwrap().write_all(config.to_string().replace("IP:", &format!("{ip}:")).as_bytes()).unwrap();
        let mut caddy = Self { ip, config: path, process: None, port };
        caddy.resume().await;
        caddy
    }

    /// Starts a server without a client timeout, and with a reverse proxy in a subroute.
    pub async fn typical() -> Self {
        Self::start(typical()).await
    }

    pub async fn resume(&mut self) {
        let mut command = leashed(cluster::tool("caddy"));
        command.args(["run", "--config"]).arg(&self.config);
        command
            .env("XDG_CONFIG_HOME", std::env::temp_dir().join("idleconn-caddy"))
            .env("XDG_DATA_HOME", std::env::temp_dir().join("idleconn-caddy"));
        self.process = Some(command.spawn().unwrap());
        eventually("Caddy answers", || async { self.get("").await }).await;
    }

    /// Stops Caddy. No other test gets its address.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            drop(process.stdin.take());
            process.wait().unwrap();
        }
    }

    pub fn admin(&self) -> String {
        format!("http://{}:{}", self.ip, self.port)
    }

    async fn get(&self, path: &str) -> Option<Json> {
        let url = format!("{}/config/apps/http/servers{path}", self.admin());
        let mut answer = reqwest::get(&url).await.ok()?;
        if answer.status() == 403 {
            answer = reqwest::Client::new().get(url).header("origin", self.admin()).send().await.ok()?;
        }
        answer.error_for_status().ok()?.json().await.ok()
    }

    /// Returns all servers of Caddy's configuration.
    pub async fn servers(&self) -> Json {
        // A reload replaces the listener and may break a request at that moment.
        eventually("Caddy answers", || async { self.get("").await }).await
    }

    /// Sets a value manually, as an administrator does.
    pub async fn set(&self, path: &str, value: Json) {
        set(&self.admin(), path, &value).await;
    }

    /// Waits until Caddy has a value.
    pub async fn shows(&self, pointer: &str, value: &Json) {
        eventually(&format!("{} shows {pointer} = {value}", self.ip), || async {
            (self.servers().await.pointer(pointer) == Some(value)).then_some(())
        })
        .await;
    }
}

impl Drop for Caddy {
    fn drop(&mut self) {
        self.stop();
        let _ = std::fs::remove_file(&self.config);
    }
}

/// Sets a value manually, by the address of the admin API. Every write is a reload, which replaces the listener and may break a
/// request at that moment. This function therefore retries, which is safe because storing the same value twice has no further
/// effect.
pub async fn set(admin: &str, path: &str, value: &Json) {
    let (url, client) = (format!("{admin}/config/apps/http/servers{path}"), reqwest::Client::new());
    eventually("Caddy takes a value", || async {
        let answer = client.post(&url).json(value).send().await.ok()?;
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap_or_default());
        Some(())
    })
    .await;
}

/// Returns servers with a typical configuration.
pub fn typical() -> Json {
    json!({"web": {
        "listen": ["127.0.0.1:0"],
        "idle_timeout": "5m",
        "routes": [{"handle": [{"handler": "subroute", "routes": [{"handle": [
            {"handler": "reverse_proxy", "upstreams": [{"dial": "127.0.0.1:9"}]},
        ]}]}]}],
    }})
}

/// Path of the reverse proxy of [`typical`].
pub const PROXY: &str = "/web/routes/0/handle/0/routes/0/handle/0";
