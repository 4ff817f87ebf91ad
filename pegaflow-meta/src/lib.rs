//! Vocabulary of a KV-cache cluster: block keys, namespaces, nodes.
