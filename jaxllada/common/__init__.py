"""Framework-free part of jaxllada: standard library, numpy and data libraries only."""
