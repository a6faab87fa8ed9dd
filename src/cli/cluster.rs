//! The cluster of a command. Requests use the user's own permissions.

use std::path::PathBuf;

use kube::{
    Api, Client, Config, ResourceExt as _,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::Error;
use crate::api::{IdleConnectionPolicy, StoredPolicy};

/// Options of the cluster, as in kubectl.
#[derive(clap::Args, Debug)]
pub struct Cluster {
    /// Namespace; by default that of the kubeconfig.
    #[arg(short, long)]
    pub namespace: Option<String>,
    /// Path of the kubeconfig; by default $KUBECONFIG, then ~/.kube/config.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig; by default the current one.
    #[arg(long)]
    pub context: Option<String>,
}

impl Cluster {
    /// Returns the policies of the namespace, and its name.
    pub async fn policies(&self) -> Result<(Api<StoredPolicy>, String), Error> {
        let (config, namespace) = self.config().await?;
        Ok((Api::namespaced(Client::try_from(config)?, &namespace), namespace))
    }

    /// Returns the policies of all namespaces.
    pub async fn all_policies(&self) -> Result<Api<StoredPolicy>, Error> {
        Ok(Api::all(Client::try_from(self.kubeconfig().await?)?))
    }

    /// Reads one policy.
    pub async fn policy(&self, name: &str) -> Result<IdleConnectionPolicy, Error> {
        let (api, _) = self.policies().await?;
        let (policy, warning) = read(api.get(name).await?)?;
        if let Some(warning) = warning {
            eprintln!("Warning: {warning}");
        }
        Ok(policy)
    }

    /// Reads the kubeconfig, and returns the namespace with it.
    pub async fn config(&self) -> Result<(Config, String), Error> {
        let config = self.kubeconfig().await?;
        let namespace = self.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        Ok((config, namespace))
    }

    async fn kubeconfig(&self) -> Result<Config, Error> {
        let problem = |error: &dyn std::error::Error| Error::Kubeconfig(error.to_string());
        let wanted = KubeConfigOptions { context: self.context.clone(), ..KubeConfigOptions::default() };
        match &self.kubeconfig {
            Some(path) => {
                let kubeconfig = Kubeconfig::read_from(path).map_err(|error| problem(&error))?;
                Config::from_custom_kubeconfig(kubeconfig, &wanted).await
            }
            None => Config::from_kubeconfig(&wanted).await,
        }
        .map_err(|error| problem(&error))
    }
}

/// Returns a policy as far as this version understands it, and a warning that names the rest.
pub fn read(stored: StoredPolicy) -> Result<(IdleConnectionPolicy, Option<Error>), Error> {
    let name = stored.name_any();
    match stored.read() {
        Ok((policy, foreign)) => Ok((policy, foreign.map(|foreign| Error::Newer { name, foreign }))),
        Err(foreign) => Err(Error::Newer { name, foreign }),
    }
}
