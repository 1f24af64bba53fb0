"""An index over HTTP: `routes` is what is asked, `batches` who answers, `pace` by which size."""
