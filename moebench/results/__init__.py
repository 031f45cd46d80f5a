"""From measured numbers to tables: records on disk, statistics over seeds, published values, tables and their rendering. No torch."""
