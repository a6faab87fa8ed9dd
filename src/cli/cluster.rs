//! The cluster of a command. Requests use the user's own permissions.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::Namespace;
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::ListParams,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde::de::DeserializeOwned;

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

    /// Returns the names of the policies of the namespace.
    pub async fn policy_names(&self) -> Result<Vec<String>, Error> {
        let (api, _) = self.policies().await?;
        names(&api).await
    }

    /// Returns the names of all namespaces.
    pub async fn namespaces(&self) -> Result<Vec<String>, Error> {
        names(&Api::<Namespace>::all(Client::try_from(self.kubeconfig().await?)?)).await
    }

    /// Returns the names of the contexts of the kubeconfig.
    pub fn contexts(&self) -> Result<Vec<String>, Error> {
        let read = self.kubeconfig.as_ref().map_or_else(Kubeconfig::read, Kubeconfig::read_from);
        let contexts = read.map_err(|error| Error::Kubeconfig(error.to_string()))?.contexts;
        Ok(contexts.into_iter().map(|context| context.name).collect())
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

async fn names<K: Clone + std::fmt::Debug + DeserializeOwned>(api: &Api<K>) -> Result<Vec<String>, Error> {
    let list = api.list_metadata(&ListParams::default()).await?;
    Ok(list.into_iter().filter_map(|object| object.metadata.name).collect())
}

/// Returns a policy as far as this version understands it, and a warning that names the rest.
pub fn read(stored: StoredPolicy) -> Result<(IdleConnectionPolicy, Option<Error>), Error> {
    let name = stored.name_any();
    match stored.read() {
        Ok((policy, foreign)) => Ok((*policy, foreign.map(|foreign| Error::Newer { name, foreign }))),
        Err(foreign) => Err(Error::Newer { name, foreign }),
    }
}
