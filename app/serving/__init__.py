"""An index that answers over HTTP: `server` is what is asked, `batches` who answers, `pace` how."""
